"""spymemcached as docs/frameworks/spring.md makes a bean of it, and in an outage."""

import subprocess
from pathlib import Path

import pages
import programs
import pytest
import servers

pytestmark = pytest.mark.full

JARS = [Path("/usr/share/java") / f"{name}.jar" for name in ("spymemcached", "commons-logging")]
#: Debian's Spring 4.3 is called 3.
JARS += [
    Path(f"/usr/share/java/spring3-{part}.jar")
    for part in ("core", "beans", "context", "aop", "expression")
]
MAIN = """
import net.spy.memcached.MemcachedClient;
import org.springframework.context.annotation.AnnotationConfigApplicationContext;

public class Main {
    private static MemcachedClient cache;

    private static void check(boolean right, String words) {
        if (!right) {
            System.err.println(words);
            System.exit(1);
        }
    }

    private static void ready() throws Exception {
        System.out.print("ready\\n");
        System.out.flush();
        while (System.in.read() != '\\n') { }
    }

    private static void served() throws Exception {
        check(cache.set("a", 60, "one").get(), "set");
        check("one".equals(cache.get("a")) && cache.get("absent") == null, "get");
        check(!cache.add("a", 60, "two").get(), "add to what is there");
        check(cache.getBulk("a", "absent").size() == 1, "getBulk");
        check(cache.set("n", 60, "1").get() && cache.incr("n", 3) == 4, "incr");
        check(cache.touch("a", 60).get(), "touch");
        check("OK".equals(cache.cas("a", cache.gets("a").getCas(), "two").name()), "cas");
        check(cache.delete("a").get() && cache.get("a") == null, "delete");
    }

    public static void main(String[] arguments) throws Exception {
        cache = new AnnotationConfigApplicationContext(CacheConfig.class)
            .getBean(MemcachedClient.class);
        served();
        ready();
        check(cache.get("n") == null && cache.gets("n") == null, "get");
        check(cache.getBulk("a", "n").isEmpty(), "getBulk");
        check(!cache.set("a", 60, "one").get() && !cache.add("a", 60, "one").get(), "set");
        check(!cache.delete("n").get(), "delete");
        check(cache.incr("n", 3) == -1, "incr");
        check(!cache.flush().get(), "flush");
        ready();
        served();
        System.exit(0);
    }
}
"""


def test_the_bean(outage: servers.Outage, tmp_path: Path) -> None:
    java, javac = servers.need("java"), servers.need("javac")
    if missing := [jar.name for jar in JARS if not jar.exists()]:
        servers.skip(f"{', '.join(missing)} not installed")
    bean = pages.block("frameworks/spring.md", "java", "MemcachedClientFactoryBean")
    # Where it stands Spring makes a subclass, which that old one cannot with a newer Java.
    bean = bean.replace("\n@Configuration\n", "\n")
    (tmp_path / "CacheConfig.java").write_text(pages.on(outage.port, bean))
    (tmp_path / "Main.java").write_text(MAIN)
    path = ":".join(map(str, [*JARS, tmp_path]))
    compile = [javac, "--release", "8", "-nowarn", "-cp", path, "-d", str(tmp_path)]
    sources = [str(tmp_path / name) for name in ("CacheConfig.java", "Main.java")]
    done = subprocess.run([*compile, *sources], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    before = outage.tunnel.metric("memtunnel_client_connections_opened_total")
    programs.live_through([java, "-cp", path, "Main"], outage)
    assert outage.tunnel.metric("memtunnel_client_connections_opened_total") == before + 1
