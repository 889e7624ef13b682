// The words of the daemon's API that this page uses. `make api` writes this file from the types in api/src: change those.

/** A decision of the autonomic manager here, of any VM. */
export interface Decided {
  /** When (RFC 3339). */
  at: string;
  /** The figures behind it, as the deciding member's version has them: shown, and read by no program of ours. */
  details: unknown;
  /** The member that decided; empty for the one that was asked, until it is shown. */
  host: string;
  /** What was decided and why. */
  text: string;
  /** The VM's id: it may live elsewhere by now. */
  vm: string;
}

/** One line of `p2pvm explain`. */
export interface Explained {
  /** When (RFC 3339). */
  at: string;
  /** The figures behind it, as the deciding member's version has them: shown, and read by no program of ours. */
  details: unknown;
  /** The member that decided; empty for the one that was asked, until it is shown. */
  host: string;
  /** What was decided and why. */
  text: string;
}

/** A failure with its kind and the sentence that the user reads. */
export interface Failure {
  /** Whether the operation was cancelled on request. Omitted when false, so that members of a previous version can parse it. */
  cancelled?: boolean;
  /** The kind. */
  kind: Kind;
  /** What happened and what to do. */
  message: string;
}

/** One thing that is found wrong with this machine. */
export interface FindingView {
  /** What to do about it; empty if nothing is to be done. */
  advice: string;
  /** What part of the machine it concerns: "routes", "names", "path", ... */
  area: string;
  /** What was found, with its cause. */
  found: string;
  /** How grave it is. */
  level: "ok" | "warning" | "failed";
}

/** The health in one word, and why. */
export interface HealthView {
  /** Why. */
  why: string;
  /** The word, as `p2pvm top` has it. */
  word: string;
}

/** The kind of a failure. Its number is the command line's exit code. */
export type Kind =
  /** The operation was tried and failed. */
  | "failed"
  /** The command line or request is invalid. */
  | "usage"
  /** A named thing does not exist. */
  | "not-found"
  /** No answer in time. */
  | "timed-out"
  /** Refused for safety, although it would have worked. */
  | "refused"
  /** Neither done nor refused for good, because the members that decide it cannot be asked now. The same request may work later. */
  | "not-now";

/** One line of a streamed answer (newline-delimited JSON). */
export type Line =
  /** How far it has come. */
  | { progress: Step }
  /** One of several results, such as one pong. */
  | { item: unknown }
  /** The end, with the result. */
  | { done: unknown }
  /** The end, without. */
  | { error: Failure };

/** A link as one of its ends sees it. */
export interface Link {
  /** The path in words, without the address: "direct", "relayed via name", "over the ring", "stream". */
  path: string;
  /** The last measured round trip, milliseconds. */
  rtt_ms: number | null;
  /** The beginning of the other member's id. */
  to: string;
}

/** What `p2pvm vm migrate` asks for. */
export interface MigrateVm {
  /** Allow post-copy. */
  post_copy?: boolean;
  /** Where to: a name, id or address. None lets this host choose the least loaded peer it knows. */
  to?: string | null;
}

/** What `p2pvm vm migrate --cancel` gets. */
export interface MoveCancelled {
  /** The name of the VM whose move is given up. */
  cancelled: string;
  /** The name of the member that it stays on. */
  host: string;
}

/** A move that is under way. */
export interface Moving {
  /** How far it is. */
  step: Step;
  /** The name of the member it goes to. */
  to: string;
}

/** What the dashboard's page gets instead of a console. */
export interface NoConsole {
  /** Why there is none. */
  error: string;
}

/** One row of `p2pvm peers`. */
export interface Peer {
  /** Its address, if known. */
  address: string | null;
  /** Whether a control connection is up. */
  connected: boolean;
  /** Whether packets go over the link and answers come back. */
  linked: boolean;
  /** The member's id. */
  member: string;
  /** Its host name. */
  name: string;
  /** The largest IP packet that the path carries whole. */
  packet_bytes: number | null;
  /** The packet path, if there is a link. */
  path: string | null;
  /** Bytes received over the link. */
  received_bytes: number;
  /** What it is to this node on the ring, if it is a neighbour there. */
  ring: RingNeighbour | null;
  /** The link's last measured round trip, milliseconds. */
  rtt_ms: number | null;
  /** Bytes sent over the link. */
  sent_bytes: number;
}

/** One of them. */
export interface PunchView {
  /** Whether the two NATs, as far as they are known, allow a direct path. */
  allowed: boolean;
  /** From the first try to the direct path, milliseconds; none: not yet. */
  direct_ms: number | null;
  /** The other member's id. */
  member: string;
  /** How often addresses were exchanged and tried. */
  tries: number;
}

/** What became of tries to reach members directly where at least one side has a NAT or a firewall. */
export interface PunchesView {
  /** Of these, came through. */
  direct: number;
  /** Of these, came through at the first try. */
  first_try: number;
  /** Begun although the NATs, as far as they are known, do not allow it. */
  hopeless: number;
  /** The newest. */
  list: PunchView[];
  /** Median time to a direct path of those listed, milliseconds. */
  median_ms: number | null;
  /** Begun where the NATs allow it. */
  tried: number;
}

/** How a host reaches a guest of its own through the guest's interface. */
export interface ReachView {
  /** How long its answer took, milliseconds. */
  rtt_ms: number | null;
  /** For how long it has been so, seconds. */
  seconds: number;
  /** "answers"; "blocked": its host drops what is for it; "silent": it has answered and does not now; "never": it has not yet. */
  state: string;
  /** Why it does not answer, as far as its host can tell. */
  why: string | null;
}

/** What `p2pvm vm restore` asks for. */
export interface RestoreVm {
  /** Take the VM over from a host that cannot be asked. */
  force?: boolean;
  /** The member to restore it on: a name, id or address. None is the member that was asked. */
  on?: string | null;
  /** The snapshot's name; none for the newest. */
  snapshot?: string | null;
}

/** A neighbour on the ring. */
export interface RingNeighbour {
  /** The round trip that both members' coordinates predict, milliseconds. */
  distance_ms: number | null;
  /** The expected relative error of its coordinate. */
  error: number | null;
  /** "near", "far", "shortcut", "leaf", or several joined by "+"; "link" if it only happens to be linked. */
  role: string;
  /** The round trip that the ring measured, milliseconds. */
  rtt_ms: number | null;
}

/** The ring as `p2pvm status` shows it. */
export interface RingView {
  /** Packets of other pairs handed on. */
  carried: number;
  /** Expected relative error of this member's network coordinate: 0.1 means 10 % off. */
  coordinate_error: number;
  /** Neighbours drawn by the distance law. */
  far: number;
  /** Whether this member has its place and carries packets of others. */
  joined: boolean;
  /** Neighbours that have not joined yet. */
  leaves: number;
  /** Nearest neighbours. */
  near: number;
  /** Its place, 16 hexadecimal digits. */
  position: string;
  /** Near neighbours replaced or found since the start. */
  repairs: number;
  /** Neighbours for much traffic. */
  shortcuts: number;
  /** Members in the network, estimated from their spacing. */
  size_estimate: number;
  /** Whether it has had its place since the daemon started. */
  was_joined: boolean;
}

/** A member's report about itself. */
export interface Sight {
  /** Its address, once claimed. */
  address: string | null;
  /** Load of its processors, 0 to 1. */
  cpu: number;
  /** Its latest decisions about VMs. */
  decisions: Decided[];
  /** Its links. */
  links: Link[];
  /** Its id. */
  member: string;
  /** Its host name. */
  name: string;
  /** What kind of NAT it sits behind. */
  nat: string;
  /** Its neighbours there. */
  neighbours: number;
  /** Its place on the ring. */
  position: string;
  /** Virtual machines running there. */
  running_vms: number;
}

/** What `p2pvm vm snapshot` gets. The fields are in alphabetical order. */
export interface SnapshotTaken {
  /** The id of the checkpoint that it is. */
  checkpoint: string;
  /** The members that hold all of it; none where that was not known in time. */
  holders: string[] | null;
  /** Its name. */
  name: string;
  /** How long the guest stood still, milliseconds. */
  pause_ms: number;
  /** As `SnapshotView::state`. */
  state: string;
  /** When it was taken (RFC 3339). */
  taken: string;
}

/** A snapshot as `vm show` gives it. */
export interface SnapshotView {
  /** The members that hold all of it. */
  holders: string[];
  /** Its name. */
  name: string;
  /** "local", "replicating N of K" or "durable". */
  state: string;
  /** When it was taken (RFC 3339). */
  taken: string;
}

/** What `p2pvm vm snapshot` asks for. */
export interface SnapshotVm {
  /** The snapshot's name; none lets the host name it after the time. */
  name?: string | null;
}

/** When, after the daemon began, each step of joining was done (milliseconds). */
export interface StartTimes {
  /** Address claimed in the DHT. */
  address: number | null;
  /** Duration of the claim alone. */
  claim: number | null;
  /** First control connection to another member. */
  connected: number | null;
}

/** `p2pvm status`. */
export interface Status {
  /** This host's address, once claimed. */
  address: string | null;
  /** Its IPv6 address, derived from its key. */
  address_v6: string;
  /** Why there is no address yet, as far as the daemon knows. */
  address_wanting?: string;
  /** Those of them whose guests answered through their interfaces when they were asked last. */
  answering_vms: number;
  /** Members with a live control connection. */
  connected: number;
  /** Load of this host's processors, 0 to 1. */
  cpu: number;
  /** What is found wrong with this machine. */
  findings: FindingView[];
  /** How this node is, in one word, and why. */
  health: HealthView;
  /** Whether this member was told of others when it joined; the founder was not. */
  joined_another: boolean;
  /** The other members that it knows. */
  known: number;
  /** Where the daemon listens for members. */
  listen: string[];
  /** The port that the router maps to this node, if it does. */
  mapped: string | null;
  /** This member's id. */
  member: string;
  /** Its host name in the network. */
  name: string;
  /** What kind of NAT it sits behind. */
  nat: string;
  /** The network's name. */
  network: string;
  /** The network's id. */
  network_id: string;
  /** What became of tries to reach members directly. */
  punches: PunchesView;
  /** How others see this node's packet port. */
  reflexive: string | null;
  /** Resident memory of the daemon, bytes. */
  resident_bytes: number;
  /** How this member stands on the ring. */
  ring: RingView;
  /** Virtual machines running here. */
  running_vms: number;
  /** How long this daemon's steps to a working address took, milliseconds. */
  start_ms: StartTimes;
  /** Addresses are drawn from here. */
  subnet: string;
  /** Seconds since the daemon started. */
  up_seconds: number;
  /** The program's version. */
  version: string;
}

/** A step of something that takes long. */
export interface Step {
  /** Bytes done in this phase. */
  done_bytes: number;
  /** More to show beside the bar: dirty rate, expected downtime. */
  note: string;
  /** What is being done, in a word or two. */
  phase: string;
  /** Bytes known to be needed, 0 if unknown. */
  total_bytes: number;
}

/** Why a guest stands still, with the room on its host's disk. */
export interface StillView {
  /** Bytes that are free there. */
  free_bytes: number;
  /** Bytes that must be free before it goes on by itself. */
  needed_bytes: number;
  /** Where its disk is. */
  path: string;
  /** In a few words: "host disk full", "host disk error". */
  why: string;
}

/** The page's content as one answer: this node with its health in `p2pvm top`'s words, every member with the links and decisions that it reports, and the VMs. */
export interface View {
  /** Its health. */
  health: HealthView;
  /** Every member that answered. */
  members: Sight[];
  /** The other members that this node knows. */
  peers: Peer[];
  /** Members that did not answer which VMs they have. */
  silent: string[];
  /** This node. */
  status: Status;
  /** The network's VMs. */
  vms: VmView[];
}

/** What `p2pvm vm migrate` gets where the VM has moved. */
export interface VmMoved {
  /** How long the guest stood still by the hypervisor's own figure, milliseconds. */
  downtime_ms: number;
  /** The epoch it is held in now. */
  epoch: number;
  /** The name of the member that it was on. */
  from: string;
  /** The name of the member that it runs on. */
  host: string;
  /** The migration's id, as in the logs of both hosts. */
  migration: string;
  /** The VM's name. */
  name: string;
  /** From the guest's pause to the target's word that it runs there, milliseconds: an upper bound of the stop. */
  pause_ms: number | null;
  /** RAM transferred, bytes. */
  ram_bytes: number;
  /** From the request to the end, milliseconds. */
  total_ms: number;
  /** The id of its trace, if it is traced. */
  trace?: string;
}

/** A VM as `vm list` and `vm show` give it. */
export interface VmView {
  /** What is being done with it. */
  activity: string | null;
  /** Its IPv4 address, the same wherever it runs. */
  address: string;
  /** Its IPv6 address. */
  address_v6: string;
  /** What a person can do about a VM whose host does not answer. */
  advice?: string;
  /** Processors it keeps busy, as its host measured last. */
  cpu: number | null;
  /** Virtual processors. */
  cpus: number;
  /** The epoch it is held in. */
  epoch: number;
  /** The name of the member that has it. */
  host: string;
  /** The id of that member. */
  host_id: string;
  /** Its id. */
  id: string;
  /** The image below its disk. */
  image: string;
  /** When its host, which does not answer any more, was seen last (RFC 3339). */
  last_seen?: string;
  /** Its Ethernet address. */
  mac: string;
  /** Memory, MiB. */
  memory_mib: number;
  /** How far its move to another member is, if it is being moved. */
  moving: Moving | null;
  /** Its name. */
  name: string;
  /** Why it is in a state nobody asked for. */
  note: string | null;
  /** Whether its guest is reached through its interface, as its host found last; nothing where it does not run. */
  reach: ReachView | null;
  /** Its snapshots. */
  snapshots: SnapshotView[];
  /** What it is doing, in a word. */
  state: string;
  /** Why its guest stands still though nobody asked for it, if it does. */
  still: StillView | null;
  /** The members whose majority decides who may run it. */
  voters: string[];
}
