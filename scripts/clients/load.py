"""Many clients at once, of which some go away in mid-stream: how long they wait, and what is left behind.

Each client has a loopback address of its own, so that the server takes them for different ones; the last
of them asks four times as much as the others.
"""

import asyncio
import json
import random
import statistics
import sys
import time
import urllib.request
from urllib.parse import urlparse

ADDRESS, KEY, SECONDS, SERVER = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
N_CLIENTS = 64
GREEDY = N_CLIENTS - 1
HOST, PORT = urlparse(ADDRESS).hostname, urlparse(ADDRESS).port


def resident_kb():
    with open(f"/proc/{SERVER}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def n_files():
    import os
    return len(os.listdir(f"/proc/{SERVER}/fd"))


def metrics():
    request = urllib.request.Request(f"{ADDRESS}/metrics", headers={"authorization": f"Bearer {KEY}"})
    lines = urllib.request.urlopen(request).read().decode().splitlines()
    pairs = (line.split(" ") for line in lines if not line.startswith("#") and "{" not in line)
    return {name.removeprefix("flash_moe_"): float(value) for name, value in pairs}


async def one_request(number, random_numbers, seen):
    """Asks once, and leaves in the middle one time of three."""
    leaves = random_numbers.random() < 1 / 3
    body = json.dumps({
        "model": "demo", "messages": [{"role": "user", "content": f"Tell me story number {random_numbers.randrange(1000)}."}],
        "stream": True, "max_tokens": 24, "temperature": 1,
    })
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {HOST}:{PORT}\r\nauthorization: Bearer {KEY}\r\n"
        f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    begun = time.monotonic()
    reader, writer = await asyncio.open_connection(HOST, PORT, local_addr=(f"127.0.1.{number + 1}", 0))
    try:
        writer.write((head + body).encode())
        status = (await reader.readline()).split()[1]
        if status != b"200":
            seen["refused"] += 1
            return
        first, n_pieces, is_whole = None, 0, False
        async for line in reader:
            if b'"content":"' in line and b'"role"' not in line or b'"reasoning_content"' in line:
                first = first or time.monotonic() - begun
                n_pieces += 1
                if leaves and n_pieces >= 5:
                    seen["left"] += 1
                    break
            is_whole |= b"[DONE]" in line
        if first:
            seen["waits"].setdefault(number, []).append(first)
        if is_whole:
            seen["whole"] += 1
        elif not leaves:
            seen["broken"] += 1
    finally:
        writer.close()


async def client(number, end, seen):
    random_numbers = random.Random(number)
    while time.monotonic() < end:
        n_at_once = 4 if number == GREEDY else 1
        await asyncio.gather(*(one_request(number, random_numbers, seen) for _ in range(n_at_once)))


async def main():
    seen = {"refused": 0, "left": 0, "whole": 0, "broken": 0, "waits": {}}
    rss, files = resident_kb(), n_files()
    end = time.monotonic() + SECONDS
    middle = asyncio.create_task(asyncio.sleep(SECONDS / 2))
    clients = [asyncio.create_task(client(number, end, seen)) for number in range(N_CLIENTS)]
    await middle
    middle_rss = resident_kb()
    health = time.monotonic()
    await asyncio.to_thread(urllib.request.urlopen, f"{ADDRESS}/health")
    health = time.monotonic() - health
    await asyncio.gather(*clients)
    await asyncio.sleep(2)
    after = metrics()

    waits = {number: statistics.median(times) for number, times in seen["waits"].items()}
    ordinary = sorted(wait for number, wait in waits.items() if number != GREEDY)
    print(f"{seen['whole']} whole answers, {seen['left']} left in mid-stream, {seen['refused']} refused, {seen['broken']} broken")
    print(
        f"median wait for the first token by client: least {ordinary[0]:.2f} s, median {statistics.median(ordinary):.2f} s, "
        f"most {ordinary[-1]:.2f} s; of the client that asks for four at once {waits.get(GREEDY, 0):.2f} s"
    )
    print(f"resident {rss >> 10} MB before, {middle_rss >> 10} MB in the middle, {resident_kb() >> 10} MB after")
    print(f"open files {files} before, {n_files()} after; /health answered in {1000 * health:.0f} ms under load")
    print(f"running {after['running']:.0f}, waiting {after['waiting']:.0f}, cancelled {after['requests_cancelled_total']:.0f}")
    assert after["running"] == 0 and after["waiting"] == 0, "a slot is stuck"
    assert seen["broken"] == 0 and len(ordinary) == N_CLIENTS - 1, "some were not answered"
    assert n_files() <= files + 2, "files stay open"


asyncio.run(main())
