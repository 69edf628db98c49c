"""The loop of the market."""


def test_a(fresh):
    s = fresh
    for n in range(3):
        s.offer(s.provider(f"clinic-{n}"), price_per_round={"amount": str(10 + n), "currency": "USD"})
    lab = s.owner("lab")
    c = s.completed(lab)
    print(lab.post(f"/v1/contracts/{c['id']}/release").text)
    print(s.size)
