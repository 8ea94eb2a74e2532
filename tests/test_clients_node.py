"""Node's clients: memjs, which speaks the binary protocol, and memcached, which speaks text."""

from collections.abc import Callable
from typing import Any

import programs
import pytest
import servers

pytestmark = pytest.mark.full

BEGINNING = """
const assert = require('node:assert/strict');
const { randomBytes } = require('node:crypto');
const { createInterface } = require('node:readline');
const port = process.argv[2];
const large = randomBytes(125000).toString('hex');
const asked = Array.from({ length: 100 }, (_, n) => `k${n * 37 % 100}`);
const there = Array.from({ length: 50 }, (_, n) => `k${n * 2}`);
const lines = createInterface({ input: process.stdin });
function ready() {
    return new Promise((resolve) => {
        lines.once('line', resolve);
        console.log('ready');
    });
}
async function main(body) {
    await body();
    lines.close();
}
process.on('unhandledRejection', (error) => { console.error(error); process.exit(1); });
"""
MEMJS = """
const memjs = require('memjs');
const [username, password] = process.argv.slice(3);
const client = memjs.Client.create(`127.0.0.1:${port}`, { timeout: 5, username, password });
const get = async (key) => {
    const { value } = await client.get(key);
    return value && String(value);
};
main(async () => {
    assert.equal(await get('absent'), null);
    assert.equal(await client.set('a', 'one', { expires: 60 }), true);
    assert.equal(await get('a'), 'one');
    assert.equal(await client.add('a', 'two', {}), false);
    assert.equal(await client.add('b', 'two', {}), true);
    assert.equal(await client.replace('absent', 'three', {}), false);
    assert.equal(await client.replace('b', 'three', {}), true);
    assert.equal(await client.append('b', '!'), true);
    await assert.rejects(client.append('absent', '!'), /not stored/);
    assert.equal(await get('b'), 'three!');
    assert.equal(await client.set('large', large, {}), true);
    assert.equal(await get('large'), large);
    // All at once on one connection.
    await Promise.all(there.map((key) => client.set(key, `v${key}`, {})));
    const found = await Promise.all(asked.map(get));
    assert.deepEqual(found, asked.map((key) => there.includes(key) ? `v${key}` : null));
    assert.equal((await client.increment('n', 3, { initial: 10 })).value, 10);
    assert.equal((await client.increment('n', 3, {})).value, 13);
    assert.equal((await client.decrement('n', 5, {})).value, 8);
    await client.set('word', 'ten', {});
    await assert.rejects(client.increment('word', 1, {}));
    assert.equal(await client.touch('a', 100), true);
    assert.equal(await client.touch('absent', 100), false);
    assert.equal(await client.delete('a'), true);
    assert.equal(await client.delete('a'), false);
    const stats = await new Promise((resolve, reject) => client.stats(
        (error, server, values) => error ? reject(error) : resolve(values)));
    assert.ok(Number(stats.curr_items) > 0);
    await client.flush();
    assert.equal(await get('k2'), null);
    client.quit();
    client.close();
});
"""
MEMCACHED = """
const { promisify } = require('node:util');
const Memcached = require('memcached');
const client = new Memcached(`127.0.0.1:${port}`, { timeout: 5000, poolSize: 3 });
const call = (name, ...values) => promisify(client[name]).call(client, ...values);
const stored = (name, ...values) => call(name, ...values).catch((error) => {
    assert.match(error.message, /not stored/);
    return false;
});
"""
MEMCACHED_COMMANDS = """
main(async () => {
    assert.equal(await call('get', 'absent'), undefined);
    assert.equal(await call('set', 'a', 'one', 60), true);
    assert.equal(await call('get', 'a'), 'one');
    assert.equal(await stored('add', 'a', 'two', 0), false);
    assert.equal(await stored('add', 'b', 'two', 0), true);
    assert.equal(await stored('replace', 'absent', 'three', 0), false);
    assert.equal(await stored('replace', 'b', 'three', 0), true);
    assert.equal(await stored('append', 'b', '!'), true);
    assert.equal(await stored('prepend', 'b', '?'), true);
    assert.equal(await stored('append', 'absent', '!'), false);
    assert.equal(await call('get', 'b'), '?three!');
    assert.equal(await call('set', 'thing', { one: [1, 'two'] }, 0), true);
    assert.deepEqual(await call('get', 'thing'), { one: [1, 'two'] });
    assert.equal(await call('set', 'large', large, 0), true);
    assert.equal(await call('get', 'large'), large);
    // All at once on a few connections.
    await Promise.all(there.map((key) => call('set', key, `v${key}`, 0)));
    const found = Object.fromEntries(there.map((key) => [key, `v${key}`]));
    assert.deepEqual({ ...await call('getMulti', asked) }, found);
    assert.deepEqual(await Promise.all(asked.map((key) => call('get', key))),
        asked.map((key) => found[key]));
    const { cas } = await call('gets', 'a');
    assert.equal(await call('cas', 'a', 'four', cas, 0), true);
    assert.equal(await call('cas', 'a', 'five', cas, 0), false);
    assert.equal(await call('get', 'a'), 'four');
    assert.equal(await call('incr', 'absent', 1), false);
    await call('set', 'n', 10, 0);
    assert.equal(await call('incr', 'n', 3), 13);
    assert.equal(await call('decr', 'n', 5), 8);
    await assert.rejects(call('incr', 'a', 1), /non-numeric/);
    assert.equal(await call('touch', 'a', 100), true);
    assert.equal(await call('touch', 'absent', 100), false);
    assert.equal(await call('del', 'a'), true);
    assert.equal(await call('del', 'a'), false);
    const [stats] = await call('stats');
    assert.ok(stats.curr_items > 0);
    const [{ version }] = await call('version');
    assert.match(version, /^1\\./);
    const [settings] = await call('settings');
    assert.ok(settings.maxbytes > 0);
    await call('slabs');
    await call('items');
    assert.deepEqual(await call('flush'), [true]);
    assert.equal(await call('get', 'k2'), undefined);
    client.end();
});
"""
#: To this client a SERVER_ERROR, whoever says it, is a reason to call its server unavailable for
#: all commands, for half a minute if it is not told otherwise.
MEMCACHED_OUTAGE = """
const brief = new Memcached(`127.0.0.1:${port}`, { timeout: 5000, poolSize: 3, retry: 200 });
const sleep = promisify(setTimeout);
main(async () => {
    assert.equal(await call('set', 'a', 'one', 0), true);
    await ready();
    assert.equal(await call('get', 'a'), undefined);
    assert.deepEqual({ ...await call('getMulti', ['a', 'b']) }, {});
    assert.equal(await call('gets', 'a'), undefined);
    for (const name of ['set', 'add', 'replace']) {
        assert.equal(await stored(name, 'a', 'two', 0), false, name);
    }
    for (const name of ['append', 'prepend']) {
        assert.equal(await stored(name, 'a', 'two'), false, name);
    }
    for (const [name, ...more] of [['del'], ['incr', 1], ['decr', 1], ['touch', 100]]) {
        const verb = promisify(brief[name]).bind(brief);
        assert.ok(!await verb('a', ...more), name);
        await assert.rejects(verb('a', ...more), /not available/);
        await sleep(300);
        assert.equal(await promisify(brief.get).call(brief, 'a'), undefined);
    }
    await ready();
    const began = performance.now();
    assert.equal(await call('set', 'a', 'two', 0), true);
    assert.equal(await call('get', 'a'), 'two');
    assert.ok(performance.now() - began < 1000);
    // A timer of what it has seen would keep it here for minutes.
    process.exit(0);
});
"""


@pytest.fixture
def node(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str], list[Any]]:
    """The command that runs a script among the clients."""

    def command(script: str) -> list[Any]:
        folder = programs.node_packages(tmp_path_factory.getbasetemp())
        file = folder / f"{request.node.name}.js"
        file.write_text(BEGINNING + script)
        return [servers.need("node"), file]

    return command


@pytest.mark.parametrize("login", [(), (servers.USERNAME, servers.PASSWORD)], ids=["open", "login"])
def test_memjs(
    served: servers.Tunnel, node: Callable[[str], list[Any]], login: tuple[str, ...]
) -> None:
    programs.run(node(MEMJS), served.port, *login)


def test_memcached(served: servers.Tunnel, node: Callable[[str], list[Any]]) -> None:
    programs.run(node(MEMCACHED + MEMCACHED_COMMANDS), served.port)


def test_memcached_without_the_server(
    outage: servers.Outage, node: Callable[[str], list[Any]]
) -> None:
    programs.live_through(node(MEMCACHED + MEMCACHED_OUTAGE), outage)
