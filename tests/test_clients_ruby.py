"""Ruby's Dalli, in each of the protocols that the installed one has."""

import subprocess

import programs
import pytest
import servers

pytestmark = pytest.mark.full

LOGIN = (servers.USERNAME, servers.PASSWORD)
BEGINNING = """
require "dalli"
require "securerandom"
def refused(words)
  yield
rescue Dalli::DalliError => error
  error.message
else
  abort("#{words} was not refused")
end
port, protocol, username, password = ARGV
options = { protocol: protocol.to_sym, username: username, password: password }.compact
Dalli.logger.level = Logger::FATAL
$client = Dalli::Client.new("127.0.0.1:#{port}", options)
"""
COMMANDS = """
check($client.get("absent").nil?, "get of what is not there")
check($client.set("a", "one", 60), "set")
check($client.get("a") == "one", "get")
check(!$client.add("a", "two"), "add to what is there")
check($client.add("b", "two", 0, raw: true), "add")
# Dalli 3.0 says 0 here, and goes by the token of what it has not stored.
check([false, nil, 0].include?($client.replace("absent", "three")), "replace of what is not there")
check($client.replace("b", "three", 0, raw: true), "replace")
check($client.append("b", "!"), "append")
check($client.prepend("b", "?"), "prepend")
check(!$client.append("absent", "!"), "append to what is not there")
check($client.get("b", raw: true) == "?three!", "what was appended to")
thing = { one: [1, "two", nil] }
check($client.set("thing", thing) && $client.get("thing") == thing, "a thing")
check($client.set("räksmörgås", "ä") && $client.get("räksmörgås") == "ä", "a key beyond ASCII")
large = SecureRandom.hex(125_000)
# Dalli 3.2 cannot read what it has compressed from an answer to a meta command.
check($client.set("large", large, nil, compress: false), "set of a large value")
check($client.get("large") == large, "get of a large value")
there = (0...100).step(2).to_h { |n| ["k#{n}", "v#{n}"] }
there.each { |key, value| $client.set(key, value) }
asked = (0...100).map { |n| "k#{n * 37 % 100}" }
check($client.get_multi(*asked) == there, "get_multi")
check($client.get_multi("x", "y", "z") == {}, "get_multi of what is not there")
found = $client.get_multi_cas("k2", "k3", "k4")
check(found.keys.sort == %w[k2 k4] && found["k2"][1] != 0, "get_multi_cas")
value, token = $client.get_cas("a")
check(value == "one", "get_cas")
check($client.set_cas("a", "four", token), "set_cas")
check(!$client.set_cas("a", "five", token), "set_cas with an old token")
check($client.cas("a") { |old| old + "!" } && $client.get("a") == "four!", "cas")
check($client.incr("n", 3, 0, 10) == 10, "incr of what is not there, from a first value")
check($client.incr("n", 3) == 13, "incr")
check($client.decr("n", 5) == 8, "decr")
check($client.decr("n", 100) == 0, "decr below nothing")
check($client.incr("absent", 1).nil?, "incr of what is not there")
refused("incr of a word") { $client.incr("b", 1) }
check($client.touch("a", 100), "touch")
check(!$client.touch("absent", 100), "touch of what is not there")
check($client.gat("a", 100) == "four!", "gat")
check($client.gat("absent", 100).nil?, "gat of what is not there")
check($client.delete("a"), "delete")
check(!$client.delete("a"), "delete of what was deleted")
$client.multi do
  100.times { |n| $client.set("q#{n}", "v#{n}", 0, raw: true) }
  $client.add("q1", "other")
  $client.delete("q2")
  $client.delete("absent")
end
check($client.get("q99", raw: true) == "v99", "what was set quietly")
check($client.get("q1", raw: true) == "v1", "what was there")
check($client.get("q2").nil?, "what was deleted quietly")
stats = $client.stats.values.first
check(stats && stats["curr_items"].to_i > 100, "stats")
check($client.version.values.first.start_with?("1."), "version")
check($client.flush.first, "flush")
check($client.get("k2").nil?, "get after flush")
$client.close
"""
OUTAGE = """
check($client.set("a", "one"), "set")
ready
check($client.get("a").nil?, "get")
check($client.get_multi("a", "b") == {}, "get_multi")
check($client.gat("a", 100).nil?, "gat")
%i[set add replace append prepend].each do |name|
  check(!$client.public_send(name, "a", "two"), name.to_s)
end
if protocol == "meta"
  %i[delete incr decr flush].each do |name|
    words = refused(name) { $client.public_send(name, *(name == :flush ? [] : ["a"])) }
    # Not all of them tell more than the first word.
    check(words.match?(/SERVER_ERROR|temporarily unavailable/), "#{name}: #{words}")
  end
else
  # A binary answer tells no more than that nothing was done.
  check(!$client.delete("a"), "delete")
  check(!$client.touch("a", 100), "touch")
end
ready
began = Process.clock_gettime(Process::CLOCK_MONOTONIC)
check($client.set("a", "two") && $client.get("a") == "two", "set and get once it is back")
check(Process.clock_gettime(Process::CLOCK_MONOTONIC) - began < 1, "at once")
$client.close
"""


def ruby(script: str) -> list[str]:
    return [servers.need("ruby"), "-e", programs.RUBY + BEGINNING + script, "--"]


@pytest.fixture(params=["binary", "meta"])
def protocol(request: pytest.FixtureRequest) -> str:
    look = 'require "dalli"; puts Dalli::VERSION, defined?(Dalli::Protocol::Meta) ? 1 : 0'
    command = [servers.need("ruby"), "-e", look]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode:
        servers.skip("Dalli is not installed")
    version, has_meta = done.stdout.split()
    if request.param == "meta" and has_meta == "0":
        # What newer ones say is in test_dalli_5_commands, so that CI may do without.
        pytest.skip(f"Dalli {version} has no meta commands")
    return str(request.param)


def test_commands(served: servers.Tunnel, protocol: str) -> None:
    programs.run(ruby(COMMANDS), served.port, protocol)


@pytest.mark.parametrize("protocol", ["binary"], indirect=True)
def test_a_login(served: servers.Tunnel, protocol: str) -> None:
    # With meta commands it knows none.
    programs.run(ruby(COMMANDS), served.port, protocol, *LOGIN)
    assert served.metric("memtunnel_client_logins_total", result="ok") > 0


def test_without_the_server(outage: servers.Outage, protocol: str) -> None:
    programs.live_through(ruby(OUTAGE), outage, protocol)
