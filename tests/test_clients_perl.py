"""Perl's Cache::Memcached and Cache::Memcached::Fast."""

import subprocess

import programs
import pytest
import servers

pytestmark = pytest.mark.full

#: What only one of them knows is asked of that one.
COMMANDS = r"""
use strict;
use warnings;
my ($port, $class) = @ARGV;
eval "require $class" or die $@;
sub check { my ($right, $words) = @_; die "$words\n" unless $right; }
sub is {
    my ($got, $wanted, $words) = @_;
    check(defined $got && $got eq $wanted, "$words: " . ($got // "undef"));
}
my $server = "127.0.0.1:$port";
$server = { address => $server, noreply => 1 } if $class->can("nowait_push");
my $client = $class->new({ servers => [$server], compress_threshold => -1 });
check(!defined $client->get("absent"), "get of what is not there");
check($client->set("a", "one", 60), "set");
is($client->get("a"), "one", "get");
check(!$client->add("a", "two"), "add to what is there");
check($client->add("b", "two"), "add");
check(!$client->replace("absent", "three"), "replace of what is not there");
check($client->replace("b", "three"), "replace");
check($client->append("b", "!"), "append");
check($client->prepend("b", "?"), "prepend");
check(!$client->append("absent", "!"), "append to what is not there");
is($client->get("b"), "?three!", "what was appended to");
check($client->set("thing", { one => [1, "two"] }), "set of a thing");
is($client->get("thing")->{one}[1], "two", "get of a thing");
my $large = join "", map { chr(97 + int(rand(26))) } 1 .. 250_000;
check($client->set("large", $large), "set of a large value");
is($client->get("large"), $large, "get of a large value");
$client->set("k$_", "v$_") for map { $_ * 2 } 0 .. 49;
my $found = $client->get_multi(map { "k" . ($_ * 37 % 100) } 0 .. 99);
is(scalar(keys %$found), 50, "get_multi");
is($found->{"k$_"}, "v$_", "get_multi of k$_") for map { $_ * 2 } 0 .. 49;
is(scalar(keys %{$client->get_multi("x", "y", "z")}), 0, "get_multi of what is not there");
check($client->set("n", 10), "set of a number");
is($client->incr("n", 3), 13, "incr");
is($client->decr("n", 5), 8, "decr");
check(!$client->incr("absent"), "incr of what is not there");
check(!$client->incr("b"), "incr of a word");
is($client->get("b"), "?three!", "the word");
if ($client->can("gets")) {
    my $pair = $client->gets("a");
    is($pair->[1], "one", "gets");
    check($client->cas("a", $pair->[0], "four"), "cas");
    check(!$client->cas("a", $pair->[0], "five"), "cas with an old token");
    is($client->get("a"), "four", "what was swapped");
}
if ($client->can("touch")) {
    check($client->touch("a", 100), "touch");
    check(!$client->touch("absent", 100), "touch of what is not there");
}
if ($client->can("gat")) {
    is($client->gat(100, "a"), "four", "gat");
    check(!defined $client->gat(100, "absent"), "gat of what is not there");
}
# Where nothing is done with the answer, Cache::Memcached::Fast asks for none.
$client->set("q$_", "v$_") for 0 .. 99;
$client->delete("q2");
$client->delete("absent");
$client->append("q3", "!");
is($client->get("q99"), "v99", "what was set quietly");
is($client->get("q3"), "v3!", "what was appended to quietly");
check(!defined $client->get("q2"), "what was deleted quietly");
check($client->delete("a"), "delete");
check(!$client->delete("a"), "delete of what was deleted");
if ($client->can("stats")) {
    my ($stats) = values %{$client->stats(["misc"])->{hosts}};
    check($stats->{misc}{curr_items} > 100, "stats");
}
if ($client->can("server_versions")) {
    my ($version) = values %{$client->server_versions};
    check($version =~ /^1\./, "version");
}
check($client->flush_all, "flush_all");
check(!defined $client->get("k2"), "get after flush_all");
$client->disconnect_all;
"""


@pytest.mark.parametrize("module", ["Cache::Memcached", "Cache::Memcached::Fast"])
def test_commands(served: servers.Tunnel, module: str) -> None:
    perl = servers.need("perl")
    if subprocess.run([perl, f"-M{module}", "-e", "1"], capture_output=True).returncode:
        servers.skip(f"Perl's {module} is not installed")
    programs.run([perl, "-e", COMMANDS, "--"], served.port, module)
