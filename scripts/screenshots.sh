#!/usr/bin/env bash
# Takes the pictures of the status screen in docs/screenshots/: it runs `p2pvm top` in tmux on a
# real network on the emulated wide area, and saves the screen as text (.txt) and with its colours
# (.svg). Needs root, tmux, a built p2pvm and the guest image. These are the defaults:
#   P2PVM=target/debug/p2pvm IMAGE=target/guest-image/guest.qcow2 OUT=docs/screenshots \
#     scripts/screenshots.sh
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(realpath "${P2PVM:-target/debug/p2pvm}")
image=$(realpath "${IMAGE:-target/guest-image/guest.qcow2}")
out=${OUT:-docs/screenshots}
bed=shots-$$
mkdir -p "$out"

on() { local host=$1; shift; "$bin" testbed exec --name "$bed" "$host" -- "$@"; }
pane() { on "$1" tmux -L "$bed-$1" "${@:2}"; }
cleanup() { "$bin" testbed down --name "$bed" >/dev/null 2>&1 || true; }
trap cleanup EXIT

# open HOST COLUMNS ROWS WORDS...: opens a terminal with `p2pvm WORDS...` in it.
open() {
  pane "$1" -f /dev/null new-session -d -x "$2" -y "$3" \
    "env LANG=C.UTF-8 TERM=xterm-256color $bin ${*:4}"
}
close() { pane "$1" kill-server || true; }
# wait_for HOST TEXT: waits until the screen shows the text.
wait_for() {
  for _ in $(seq 1 300); do
    pane "$1" capture-pane -p | grep -qF -- "$2" && return 0
    sleep 0.2
  done
  echo "screenshots: the screen of $1 did not show '$2':" >&2
  pane "$1" capture-pane -p >&2
  return 1
}

# svg COLUMNS: turns a screen's lines with their colours into SVG: 8 x 17 pixels a cell, the sixteen
# colours of the Linux console.
svg() {
  perl -CSD -e '
    my @names = qw(#101418 #cc4444 #4caf50 #d0a020 #5080e0 #b060c0 #30a8b0 #c8c8c8 #707070 #ff6666 #70d070 #ffd050 #80a8ff #e080e0 #60d8e0 #ffffff);
    my ($fg, $bg, $bold, $reverse) = ($names[7], "", 0, 0);
    my ($row, $body) = (0, "");
    while (my $line = <STDIN>) {
      chomp $line;
      my $col = 0;
      for my $part (split /(\e\[[0-9;]*m)/, $line) {
        if ($part =~ /^\e\[([0-9;]*)m$/) {
          my @codes = split /;/, ($1 eq "" ? "0" : $1);
          while (@codes) {
            my $c = shift @codes;
            if ($c == 0) { ($fg, $bg, $bold, $reverse) = ($names[7], "", 0, 0) }
            elsif ($c == 1) { $bold = 1 } elsif ($c == 22) { $bold = 0 }
            elsif ($c == 7) { $reverse = 1 } elsif ($c == 27) { $reverse = 0 }
            elsif ($c >= 30 && $c <= 37) { $fg = $names[$c - 30] } elsif ($c >= 90 && $c <= 97) { $fg = $names[$c - 82] }
            elsif ($c == 39) { $fg = $names[7] } elsif ($c == 49) { $bg = "" }
            elsif ($c >= 40 && $c <= 47) { $bg = $names[$c - 40] }
            elsif ($c == 38 || $c == 48) { shift @codes; my $n = shift @codes; ($c == 38 ? $fg : $bg) = $names[$n % 16] }
          }
          next;
        }
        my $n = length $part or next;
        my ($f, $b) = $reverse ? ($names[0], $names[7]) : ($fg, $bg);
        my ($x, $y) = (8 + $col * 8, 8 + $row * 17);
        $body .= sprintf "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"17\" fill=\"%s\"/>\n", $x, $y, $n * 8, $b if $b ne "";
        (my $text = $part) =~ s/&/&amp;/g; $text =~ s/</&lt;/g; $text =~ s/>/&gt;/g;
        $body .= sprintf "<text x=\"%d\" y=\"%d\" fill=\"%s\"%s textLength=\"%d\" xml:space=\"preserve\">%s</text>\n",
          $x, $y + 13, $f, ($bold ? " font-weight=\"bold\"" : ""), $n * 8, $text if $part =~ /\S/;
        $col += $n;
      }
      $row++;
    }
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"DejaVu Sans Mono, monospace\" font-size=\"13\">\n", $ARGV[0] * 8 + 16, $row * 17 + 16;
    print "<rect width=\"100%\" height=\"100%\" fill=\"$names[0]\"/>\n$body</svg>\n";
  ' "$1"
}

# shot HOST NAME COLUMNS: saves the host's screen as NAME.txt and NAME.svg.
shot() {
  pane "$1" capture-pane -p >"$out/$2.txt"
  pane "$1" capture-pane -p -e | svg "$3" >"$out/$2.svg"
  echo "$out/$2"
}

"$bin" testbed up lab/sites/demo.toml --name "$bed" >/dev/null
for host in bootstrap london amsterdam lyon prague madrid; do
  on "$host" sh -c 'mkdir -p "$P2PVM_DIR" && printf "cpus = 1\nupnp = false\n" > "$P2PVM_DIR/node.toml"'
done
on bootstrap "$bin" init --network lab >/dev/null
on bootstrap "$bin" up --detach >/dev/null
open bootstrap 80 24 top --console --allow-shell
wait_for bootstrap p2pvm1
shot bootstrap alone 80
pane bootstrap send-keys i
wait_for bootstrap 'QR code'
pane bootstrap send-keys Right
wait_for bootstrap 'Part 1'
shot bootstrap invite-qr 80
close bootstrap

invite=$(on bootstrap "$bin" invite --uses 5)
for host in london amsterdam lyon prague madrid; do on "$host" "$bin" join "$invite" >/dev/null; done
for host in bootstrap london amsterdam prague madrid; do
  on lyon "$bin" ping "$host" --count 3 --interval 200ms >/dev/null || true
done
on lyon "$bin" vm create web --image "$image" --cpus 1 --memory 128M --start >/dev/null
on lyon "$bin" vm create db --image "$image" --cpus 1 --memory 128M >/dev/null
open lyon 80 24 top
wait_for lyon 'VMs: 1 of 2 running'
shot lyon overview 80
close lyon
