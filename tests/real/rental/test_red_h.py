from __future__ import annotations
import json, threading, time, sys
from concurrent.futures import ThreadPoolExecutor
from collections import Counter
import httpx, pytest
from domain.ledger import Caller
from tests.real.persona.capsule_world import OPERATOR
from tests.real.rental.shop import *

def log(*a):
    with open("/tmp/h/red.log","a") as f: print(*a, file=f)

def many(n, f):
    with ThreadPoolExecutor(n) as ex: return list(ex.map(f, range(n)))

def code(a):
    try: return (a.status_code, a.json().get("code", "ok"))
    except Exception: return (a.status_code, a.text[:80])

def bad(what, a):
    if a.status_code>=500: log("!!! 5xx", what, a.status_code, a.text[:300])
    return code(a)

def test_red(shop):
    log("start", time.strftime("%X"))
    P="/v1/personas/harbour-pilot"
    usd=lambda x:{"amount":x,"currency":"USD"}
    ann=Caller("ann","poor",frozenset({"owner","provider"}))
    shop.clients[ann]=shop.stage.world.client(ann)
    # races: funds for one
    shop.made(TELLER,"/v1/deposits",{"tenant":"poor","amount":usd("0.50")})
    r=many(64,lambda i: code(shop.post(ann,f"{P}/rent",{"minutes":60})))
    log("64 rent with funds for one", Counter(r))
    rid=shop.read(ann,"/v1/rentals")["items"][0]["id"]
    log("64 activate", Counter(many(64,lambda i: code(shop.post(ann,f"/v1/rentals/{rid}/activate")))))
    log("64 extend no funds", Counter(many(64,lambda i: code(shop.post(ann,f"/v1/rentals/{rid}/extend",{"minutes":1})))))
    shop.made(TELLER,"/v1/deposits",{"tenant":"poor","amount":usd("1.00")})
    log("64 extend+end at once", Counter(many(64,lambda i: code(shop.post(ann,f"/v1/rentals/{rid}/{'end' if i%2 else 'extend'}",None if i%2 else {"minutes":60})))))
    log("wallet poor", shop.wallet("poor"), shop.read(ann,f"/v1/rentals/{rid}")["status"])
    # idempotency across routes
    k={"Idempotency-Key":"same"}
    log("key on rent", code(shop.post(RENTER,f"{P}/rent",{"minutes":60},**k)), "on purchase", code(shop.post(RENTER,f"{P}/purchase",{},**k)), "other tenant", code(shop.post(ann,f"{P}/rent",{"minutes":60},**k)), "other body", code(shop.post(RENTER,f"{P}/rent",{"minutes":61},**k)))
    # NUL and odd text
    nul="a\u0000b"
    for what,who,path,body in [
        ("memo transfer",RENTER,"/v1/transfers",{"to_tenant":"poor","amount":usd("0.01"),"memo":nul}),
        ("memo deposit",TELLER,"/v1/deposits",{"tenant":"poor","amount":usd("0.01"),"memo":nul}),
        ("memo long",RENTER,"/v1/transfers",{"to_tenant":"poor","amount":usd("0.01"),"memo":"x"*4000}),
        ("book description",RENTER,"/v1/price_books",{"book":"b","currency":"USD","description":nul,"charges":[{"id":"c","meter":"period","price":{"model":"flat","price":"1"}}]}),
        ("charge id nul",RENTER,"/v1/price_books",{"book":"b","currency":"USD","charges":[{"id":nul,"meter":"period","price":{"model":"flat","price":"1"}}]}),
        ("charge description nul",RENTER,"/v1/price_books",{"book":"b2","currency":"USD","charges":[{"id":"c","description":nul,"meter":"period","price":{"model":"flat","price":"1"}}]}),
        ("match nul",RENTER,"/v1/price_books",{"book":"b3","currency":"USD","charges":[{"id":"c","match":{"model":nul},"meter":"requests","price":{"model":"per_unit","price":"1"}}]}),
        ("payout destination",SELLER,"/v1/payouts",{"amount":usd("1"),"destination":nul}),
        ("grant memo nul",TELLER,"/v1/customers/renters/credits",{"amount":usd("1"),"memo":nul}),
        ("10000 tiers",RENTER,"/v1/price_books",{"book":"b4","currency":"USD","charges":[{"id":"c","meter":"requests","price":{"model":"graduated","tiers":[{"price":"1","up_to":str(i+1)} for i in range(10000)]+[{"price":"1"}]}}]}),
        ("200 charges of 100 tiers",RENTER,"/v1/price_books",{"book":"b5","currency":"USD","charges":[{"id":f"c{j}","meter":"requests","price":{"model":"graduated","tiers":[{"price":"1","up_to":str(i+1)} for i in range(99)]+[{"price":"1"}]}} for j in range(200)]}),
        ("desc 60k",RENTER,"/v1/price_books",{"book":"b6","currency":"USD","charges":[{"id":"c","description":"x"*60000,"meter":"period","price":{"model":"flat","price":"1"}}]}),
        ("surrogate memo",RENTER,"/v1/transfers",{"to_tenant":"poor","amount":usd("0.01"),"memo":"\ud800"}),
        ("book far future",RENTER,"/v1/price_books",{"book":"far","currency":"USD","effective_from":"9999-12-31T23:59:59Z","charges":[{"id":"c","meter":"period","price":{"model":"flat","price":"1"}}]}),
        ("book past",RENTER,"/v1/price_books",{"book":"past","currency":"USD","effective_from":"2020-12-31T23:59:59Z","charges":[{"id":"c","meter":"period","price":{"model":"flat","price":"1"}}]}),
        ("leap second",RENTER,"/v1/price_books",{"book":"leap","currency":"USD","effective_from":"2026-12-31T23:59:60Z","charges":[{"id":"c","meter":"period","price":{"model":"flat","price":"1"}}]}),
        ("enroll far",TELLER,"/v1/customers",{"tenant":"faraway","book":"renters.far"}),
        ("huge price",RENTER,"/v1/price_books",{"book":"huge","currency":"USD","charges":[{"id":"c","meter":"requests","price":{"model":"per_unit","price":"1000000000000000","per":"0.000000001"}}]}),
        ("quote huge",RENTER,"/v1/quotes",{"book":"renters.huge","usage":[{"provider":"p","model":"m","requests":10**12}]}),
        ("quote to 9999",RENTER,"/v1/quotes",{"book":"renters.huge","end":"9999-12-31T23:59:59.999999Z"}),
        ("NaN amount",RENTER,"/v1/transfers",{"to_tenant":"poor","amount":usd("NaN")}),
        ("1e5",RENTER,"/v1/transfers",{"to_tenant":"poor","amount":usd("1e5")}),
        ("-1",RENTER,"/v1/transfers",{"to_tenant":"poor","amount":usd("-1")}),
        ("-0",RENTER,"/v1/transfers",{"to_tenant":"poor","amount":usd("-0")}),
        ("0.0000000001",RENTER,"/v1/transfers",{"to_tenant":"poor","amount":usd("0.0000000001")}),
        ("tiny ok",RENTER,"/v1/transfers",{"to_tenant":"poor","amount":usd("0.000000001")}),
        ("float",RENTER,"/v1/transfers",{"to_tenant":"poor","amount":{"amount":1.5,"currency":"USD"}}),
        ("minutes bool",RENTER,f"{P}/rent",{"minutes":True}),
        ("minutes neg",RENTER,f"{P}/rent",{"minutes":-5}),
        ("minutes 1e30",RENTER,f"{P}/rent",{"minutes":10**30}),
        ("unknown field",RENTER,f"{P}/rent",{"minutes":5,"price":"0"}),
        ("renter smuggled",RENTER,f"{P}/rent",{"minutes":5,"persona_id":"other"}),
        ("anchor 0001",RENTER,f"{P}/subscribe",{"anchor":"0001-01-01","zone":"Pacific/Apia"}),
        ("anchor 9999",RENTER,f"{P}/subscribe",{"anchor":"9999-12-31","zone":"Pacific/Apia"}),
        ("anchor feb30",RENTER,f"{P}/subscribe",{"anchor":"2026-02-30"}),
        ("zone ../etc",RENTER,f"{P}/subscribe",{"zone":"../../etc/passwd"}),
        ("zone abs",RENTER,f"{P}/subscribe",{"zone":"/etc/localtime"}),
        ("zone posixrules",RENTER,f"{P}/subscribe",{"zone":"localtime"}),
        ("zone nul",RENTER,f"{P}/subscribe",{"zone":"UTC\u0000"}),
        ("zone dir",RENTER,f"{P}/subscribe",{"zone":"Europe"}),
        ("self rent",SELLER,f"{P}/rent",{"minutes":60}),
    ]:
        try: log(what, bad(what, shop.post(who,path,body)))
        except Exception as e:
            log(what,"client",repr(e)[:100])
    for name in [s["id"] for s in shop.read(RENTER,"/v1/subscriptions")["items"]]:
        shop.post(RENTER,f"/v1/subscriptions/{name}/cancel",{"when":"now"})
    log("deep json", bad("deep", shop.clients[RENTER].post("/v1/price_books",content=b'{"charges":'+b"["*100000+b"]"*100000+b"}",headers={"content-type":"application/json"})))
    # gets
    for path in ["/v1/rentals?cursor=abc","/v1/rentals?cursor=AAAA","/v1/rentals?limit=0","/v1/rentals?limit=1e9","/v1/invoices?cursor=%00","/v1/rentals?as_of=1","/v1/accounts?as_of=99999999999999999999999","/v1/accounts/wallet.renters.USD/postings?cursor=zzzz","/v1/accounts/wallet.acme.USD","/v1/accounts/earnings.acme.USD","/v1/accounts/x","/v1/accounts/wallet.renters.USD.evil",
        "/v1/price_books/renters.b4/versions/x","/v1/price_books/renters.huge/versions/"+"9"*190,"/v1/price_books/renters.huge/versions/0","/v1/price_books/renters.huge/versions/-1","/v1/price_books/renters.huge/versions/1.0",
        "/v1/price_books/renters.huge/in_force?at=0001-01-01T00:00:00Z","/v1/rentals/%00","/v1/rentals/"+"a"*500, f"/v1/rentals/{rid}", f"/v1/rentals/{rid}/entitlement?epoch=-1", f"/v1/rentals/{rid}/entitlement?epoch=99999999999999999999"]:
        log("GET",path[:70],bad(path,shop.clients[RENTER].get(path)))
    # payouts beyond balance in a race
    bal=shop.clients[OPERATOR].get("/v1/accounts/earnings.acme.USD").json()
    log("earnings", bal)
    r=many(32,lambda i: code(shop.post(SELLER,"/v1/payouts",{"amount":usd("0.40"),"destination":"bank"})))
    log("32 payouts", Counter(r), shop.clients[OPERATOR].get("/v1/accounts/earnings.acme.USD").json())
    po=[p for p in shop.read(SELLER,"/v1/payouts")["items"] if p["status"]=="requested"]
    if po:
        r=many(32,lambda i: code(shop.post(TELLER,f"/v1/payouts/{po[0]['id']}/{'confirm' if i%2 else 'fail'}",{"reference":"x"} if i%2 else {"reason":"x"})))
        log("confirm/fail race", Counter(r)); log("seller confirms", code(shop.post(SELLER,f"/v1/payouts/{po[0]['id']}/confirm",{"reference":"x"})))
