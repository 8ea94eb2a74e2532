"""Express as docs/frameworks/express.md sets it up: cache, sessions, and both in an outage."""

from typing import Any

import pages
import programs
import pytest
import servers

pytestmark = pytest.mark.full

PAGE = "frameworks/express.md"
BEGINNING = """
const assert = require("node:assert/strict");
const { promisify } = require("node:util");
const lines = require("node:readline").createInterface({ input: process.stdin });
function ready() {
    return new Promise((resolve) => {
        lines.once("line", resolve);
        process.stdout.write("ready\\n");
    });
}
// memjs says on the output what was not stored, the app's handler on the errors.
console.log = console.error = () => {};
process.env.SESSION_SECRET = "of tests";
"""
MEMJS = """
const get = async (key) => {
    const { value } = await cache.get(key);
    return value && String(value);
};
const set = (key, value) => cache.set(key, value, { expires: 60 });
const del = (key) => cache.delete(key);
"""
MEMCACHED = """
const call = (name, ...values) => promisify(cache[name]).call(cache, ...values);
const get = async (key) => (await call("get", key)) ?? null;
const set = (key, value) => call("set", key, value, 60);
const del = (key) => call("del", key);
const remember = undefined;
"""
SITE = """
app.get("/", (request, response) => {
    request.session.visits = (request.session.visits || 0) + 1;
    response.send(String(request.session.visits));
});
app.get("/leave", (request, response) => request.session.destroy(() => response.send("0")));
"""
SCRIPT = """
const listening = app.listen(0, "127.0.0.1", async () => {
    const where = `http://127.0.0.1:${listening.address().port}`;
    let cookie;
    const visit = async (path = "/") => {
        const headers = cookie ? { cookie } : {};
        const response = await fetch(where + path, { headers });
        assert.equal(response.status, 200);
        cookie = response.headers.get("set-cookie")?.split(";")[0] ?? cookie;
        return Number(await response.text());
    };
    const served = async () => {
        assert.equal(await set("a", "one"), true);
        assert.equal(await get("a"), "one");
        assert.equal(await get("absent"), null);
        assert.equal(await del("a"), true);
    };
    await served();
    assert.deepEqual([await visit(), await visit(), await visit()], [1, 2, 3]);
    if (remember) {
        assert.deepEqual(await remember("m", 60, () => ({ made: 1 })), { made: 1 });
        assert.deepEqual(await remember("m", 60, () => ({ made: 2 })), { made: 1 });
    }
    await ready();
    assert.equal(await get("m"), null);
    await assert.rejects(set("a", "one"), /[Nn]ot stored|not stored/);
    assert.deepEqual([await visit(), await visit()], [1, 1]);
    if (remember) assert.deepEqual(await remember("m", 60, () => ({ made: 3 })), { made: 3 });
    const gone = await del("a").catch((error) => error);
    if (remember) {
        assert.match(gone.message, /not stored/);
        assert.equal(await get("m"), null);
    } else {
        await assert.rejects(get("m"), /not available/);
    }
    await ready();
    // It is given up for no longer than the page says.
    for (let tries = 0; await get("m").catch(() => "given up") === "given up"; tries++) {
        assert.ok(tries < 20);
        await new Promise((resolve) => setTimeout(resolve, 100));
    }
    await served();
    assert.deepEqual([await visit(), await visit()], [1, 2]);
    assert.equal(await visit("/leave"), 0);
    assert.equal(await visit(), 1);
    process.exit(0);
});
"""


@pytest.mark.parametrize("client", ["memjs", "memcached"])
def test_cache_and_sessions(
    outage: servers.Outage, tmp_path_factory: pytest.TempPathFactory, client: str
) -> None:
    folder = programs.node_packages(tmp_path_factory.getbasetemp())
    app = pages.block(PAGE, "js", "connect-memjs")
    parts: list[Any] = [BEGINNING, pages.block(PAGE, "js", f'require("{client}")')]
    if client == "memjs":
        parts += [MEMJS, app]
    else:
        # Its own store in place of the other.
        store = pages.block(PAGE, "js", "connect-memcached")
        plain = app.replace('const Store = require("connect-memjs")(session);\n', store)
        start = plain.index("  store: new Store({ servers")
        end = plain.index("\n", start)
        parts += [MEMCACHED, plain[:start] + "  store," + plain[end:]]
    parts += [SITE, pages.block(PAGE, "js", "headersSent"), SCRIPT]
    file = folder / f"express-{client}.js"
    file.write_text("".join(parts).replace("11211", str(outage.port)))
    programs.live_through([servers.need("node"), file], outage)


def test_the_shortest_client(
    served: servers.Tunnel, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = programs.node_packages(tmp_path_factory.getbasetemp()) / "shortest.js"
    script = """
    cache.set("a", "one", {}).then(() => cache.get("a")).then(({ value }) => {
        process.exit(String(value) === "one" ? 0 : 1);
    });
    """
    file.write_text(pages.on(served.port, pages.block("../README.md", "js")) + script)
    programs.run([servers.need("node"), file], served.port)
