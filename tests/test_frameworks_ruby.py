"""Rails as docs/frameworks/rails.md sets it up: cache, sessions, and both in an outage."""

import subprocess

import pages
import programs
import pytest
import servers

pytestmark = pytest.mark.full

SCRIPT = """
require "active_support"
require "active_support/cache"
require "active_support/core_ext/integer/time"
require "action_controller"
require "rack/mock"
class Settings
  attr_accessor :cache_store
  attr_reader :session
  def session_store(*settings)
    @session = settings
  end
end
port, cache, sessions = ARGV
config = Settings.new
eval(cache.gsub("11211", port))
eval(sessions)
store = ActiveSupport::Cache.lookup_store(*config.cache_store)
Dalli.logger.level = Logger::FATAL
name, options = config.session
check(name == :cache_store, "the name of the session store")
counter = lambda do |env|
  session = ActionDispatch::Request.new(env).session
  session["visits"] = (session["visits"] || 0) + 1
  [200, {}, [session["visits"].to_s]]
end
stored = ActionDispatch::Session::CacheStore.new(counter, options.merge(cache: store))
$app = Rack::MockRequest.new(ActionDispatch::Cookies.new(stored))
def visit
  response = $app.get("/", $cookie ? { "HTTP_COOKIE" => $cookie } : {})
  $cookie = response["Set-Cookie"].split(";").first if response["Set-Cookie"]
  response.body.to_i
end
def served(store)
  check(store.write("a", "one"), "write")
  check(store.read("a") == "one" && store.exist?("a"), "read")
  check(store.read("absent").nil? && !store.exist?("absent"), "read of what is not there")
  check(!store.write("a", "two", unless_exist: true), "write of what is there")
  check(store.fetch("b", expires_in: 60) { "made" } == "made", "fetch of what is not there")
  check(store.fetch("b") { "other" } == "made", "fetch")
  both = { "x" => "xx", "y" => "yy" }
  check(store.fetch_multi("x", "y") { |key| key * 2 } == both, "fetch_multi")
  check(store.read_multi("x", "y", "z") == both, "read_multi")
  check(store.write("n", 1, raw: true) && store.increment("n", 3) == 4, "increment")
  check(store.delete("a") && store.read("a").nil?, "delete")
end
served(store)
check([visit, visit, visit] == [1, 2, 3], "a session")
threads = 8.times.map do |n|
  Thread.new { 20.times { check(store.write("t#{n}", n) && store.read("t#{n}") == n, "a thread") } }
end
threads.each(&:join)
ready
check(store.write("a", "one") == false, "write")
check(store.read("b").nil? && store.read_multi("x", "y") == {}, "read")
check(store.fetch("b") { "again" } == "again", "fetch")
check(store.delete("b") == false, "delete")
check(store.increment("n") == false, "increment")
check([visit, visit] == [1, 1], "a session")
ready
served(store)
check([visit, visit] == [1, 2], "a session of afterwards")
"""


@pytest.mark.parametrize("pool", [False, True], ids=["one connection", "pool"])
def test_cache_and_sessions(outage: servers.Outage, pool: bool) -> None:
    look = 'require "active_support"; require "action_controller"; require "dalli"'
    look += '; require "connection_pool"'
    command = [servers.need("ruby"), "-e", look]
    if subprocess.run(command, capture_output=True, timeout=30).returncode:
        servers.skip("Rails' cache, Dalli or connection_pool is not installed")
    having = "pool_size: 5" if pool else "failover: false\n"
    cache = pages.block("frameworks/rails.md", "ruby", having)
    sessions = pages.block("frameworks/rails.md", "ruby", "session_store")
    before = outage.tunnel.metric("memtunnel_client_connections_opened_total")
    script = programs.RUBY + SCRIPT
    programs.live_through([servers.need("ruby"), "-e", script, "--"], outage, cache, sessions)
    opened = outage.tunnel.metric("memtunnel_client_connections_opened_total") - before
    assert (opened > 1) == pool
