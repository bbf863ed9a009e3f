from __future__ import annotations
import asyncio, time
import pytest
from tests.proxy import pull_through, running_proxy
from tests.remotes.content import Synthetic, read_all
from tests.remotes.faults import *
from tests.remotes.registry import RegistryRemote
from tests.remotes.files import FileRemote
from tests.scenarios.device import ask, ask_many, asking, ask_raw
from tests.scenarios.slow_device import slow_device
from tests.scenarios.stage import staged, fresh, until, PATIENT
MIB=1024*1024
LARGE = 24*MIB
@pytest.fixture
async def st(tmp_path):
    files = {}
    async with RegistryRemote() as r, FileRemote({}, manifest=False) as f:
        async with staged(tmp_path, pull_through("container","d",{"r":r.url},remote=PATIENT),
             pull_through("container","strict",{"r":r.url},remote=PATIENT, distribution={"cold_range":"strict"}),
             pull_through("container","first",{"r":r.url},remote=PATIENT, distribution={"verify_first_bytes":"unlimited","verify_first_seconds":1}),
             pull_through("file","f",{"f":f.url+"/"},remote=PATIENT),
             cache={"max_size":"1MiB"}, window_size="1MiB") as p:
            yield r,f,p
            t=(await p.metrics())
            print("transfers", t.total("contentapp_transfers"), "degraded", t.total("contentapp_degraded_flights_total"), "range", t.total("contentapp_range_requests_total"))
def put(r):
    c = fresh(LARGE); d = r.push_blob("app", c); return c, d
async def test_one(st):
    r,f,p=st; c,d=put(r)
    a=await ask(f"{p.url}/v2/d/app/blobs/{d}")
    assert a.sha256==d and a.is_complete
    assert a.cache=="fwd=miss; detail=no-space"
async def test_slow(st):
    r,f,p=st; c,d=put(r)
    u=f"{p.url}/v2/d/app/blobs/{d}"
    async with slow_device(u) as s:
        await s.read(1000)
        a=await ask_many(u,5)
        assert {x.sha256 for x in a}=={d}
        assert await s.finish()
        assert bytes(s.body)==read_all(c)
async def test_late(st):
    r,f,p=st; c,d=put(r)
    u=f"{p.url}/v2/d/app/blobs/{d}"
    g=Stall(8*MIB); r.script("*", g, method="GET", times=1)
    async with asking(u) as one:
        x=await one.content.readexactly(8*MIB)
        l=await ask(u)
        assert l.sha256==d
        g.gate.release()
        x+=await one.content.read()
        assert x==read_all(c)
@pytest.mark.parametrize("dist",["d","strict","first"])
@pytest.mark.parametrize("rg",[(10*MIB,11*MIB),(10*MIB,LARGE),(LARGE-10,LARGE),(0,100)])
async def test_range(st,rg,dist):
    r,f,p=st; c,d=put(r)
    u=f"{p.url}/v2/{dist}/app/blobs/{d}"
    t=time.time()
    async with asyncio.timeout(8):
        a=await ask(u,headers={"Range":f"bytes={rg[0]}-{rg[1]-1}"})
    print("took",time.time()-t, a.status, a.reason, a.body[:100] if a.status>300 else "")
    assert a.status==206
    assert a.body==read_all(c)[rg[0]:rg[1]]
@pytest.mark.parametrize("dist",["d","strict"])
@pytest.mark.parametrize("rg",[(1*MIB,2*MIB),(1*MIB,LARGE),(LARGE-10,LARGE), (0,LARGE)])
async def test_late_range(st,rg,dist):
    r,f,p=st; c,d=put(r)
    u=f"{p.url}/v2/{dist}/app/blobs/{d}"
    g=Stall(8*MIB); r.script("*", g, method="GET", times=1)
    async with asking(f"{p.url}/v2/d/app/blobs/{d}") as one:
        x=await one.content.readexactly(8*MIB)
        async with asyncio.timeout(10):
            t=asyncio.create_task(ask(u,headers={"Range":f"bytes={rg[0]}-{rg[1]-1}"}))
            await asyncio.sleep(1)
            g.gate.release()
            x+=await one.content.read()
            a=await t
        assert a.status==206
        assert a.body==read_all(c)[rg[0]:rg[1]]
        assert x==read_all(c)
@pytest.mark.parametrize("unsized",[False,True])
async def test_file(st,unsized):
    r,f,p=st; c=fresh(LARGE); f.put("x",c)
    u=f"{p.url}/pulp/content/f/x"
    if unsized: f.script("/x",Unsized())
    a=await ask_many(u,3)
    assert all(x.is_complete and x.body==read_all(c) for x in a)
@pytest.mark.parametrize("unsized",[False,True])
async def test_late_file(st, unsized):
    r,f,p=st; c=fresh(LARGE); f.put("x",c)
    u=f"{p.url}/pulp/content/f/x"
    g=Stall(8*MIB); f.script("*", g, *([Unsized()] if unsized else []), method="GET", times=1)
    async with asking(u) as one:
        x=await one.content.readexactly(6*MIB)
        l=await ask(u)
        print(l.status, l.is_complete)
        assert l.body==read_all(c)
async def test_old(st):
    r,f,p=st; c=fresh(LARGE); f.put("x",c)
    f.script("/x",Unsized())
    async with asyncio.timeout(10):
        raw=await ask_raw(p.url,b"GET /pulp/content/f/x HTTP/1.0\r\nHost: x\r\n\r\n")
    print(raw[:300])
async def test_first(st):
    r,f,p=st; c,d=put(r)
    u=f"{p.url}/v2/first/app/blobs/{d}"
    a=await ask(u)
    assert a.sha256==d
