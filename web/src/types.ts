// The words of the daemon's API that this page uses. `make api` writes this file from the types in api/src: change those.

/** One line of a streamed answer, with the result `Done` or one of several results `Item`. */
export type Line<Done, Item = never> =
  /** Progress. */
  | { progress: Step }
  /** One of several results, such as one pong. */
  | { item: Item }
  /** The end, with the result. */
  | { done: Done }
  /** The end, without. */
  | { error: Failure };

/** The results of the operations that are answered in lines, by the last word of their paths. */
export interface Results {
  /** Ends the offer: moves other members' VMs away, and stops those that cannot move. */
  off: OfferEnded;
  /** Starts a VM. */
  start: VmView;
  /** Stops a VM; with force, without asking its guest. */
  stop: VmView;
  /** Moves a VM to another member. */
  migrate: VmMoved;
  /** Takes a snapshot of a VM. */
  snapshot: SnapshotTaken;
  /** Sets a VM back to a snapshot, here or on the member that the request names. */
  restore: VmView;
}

/** The operation on a VM. */
export type ActivityView =
  /** It is moved to another member. */
  | "migrating"
  /** It is moved to this host. */
  | "arriving"
  /** Its voters are asked whether it is still this host's. */
  | "asking its voters"
  /** Its voters have to say where it may run. */
  | "waiting for its voters"
  /** It waits for the operation before. */
  | "waiting"
  /** It is created. */
  | "being made"
  /** It is started. */
  | "starting"
  /** It is started because its host was. */
  | "starting after a restart of the host"
  /** It is stopped. */
  | "stopping"
  /** Its guest ended by itself. */
  | "stopped by its guest"
  /** Its paused guest goes on. */
  | "going on"
  /** It is deleted. */
  | "deleting"
  /** What a creation or deletion left is removed. */
  | "removing what is left"
  /** A snapshot of it is taken. */
  | "snapshot"
  /** A snapshot of it is deleted. */
  | "deleting a snapshot"
  /** It is restored from a snapshot. */
  | "restoring"
  /** The copy on this host is replaced by a restore there. */
  | "giving way to a restore"
  /** The copy on this host is left to a restore on another member. */
  | "giving way to a restore elsewhere"
  /** Its guest stands still for good: another machine has its host's identity. */
  | "giving it up"
  /** Its move is ended on request. */
  | "the move's end"
  /** A word of a later version. */
  | string;

/** How much a guest may send, and how much receive, on its present host. */
export interface BandwidthView {
  /** Bits a second, each way. */
  bits_per_second: number;
  /** Bytes of packets that were dropped by the limit, both ways together, since the guest runs there. */
  dropped_bytes: number;
}

/** A decision of the autonomic manager here, of any VM. */
export interface Decided {
  /** When (RFC 3339). */
  at: string;
  /** The figures behind it; a member's report about itself has none. */
  details: DecisionFigures | null;
  /** The member that decided; empty for the member that was asked, until it is shown. */
  host: string;
  /** The decision and its reason. */
  text: string;
  /** The VM's id; the VM may be elsewhere by now. */
  vm: string;
}

/** The figures of a decision about a VM. Loads are shares of a node's CPUs. The fields are in alphabetical order. */
export interface DecisionFigures {
  /** How much nearer the VM comes to the members it exchanges traffic with, from 1 (all of its traffic stays on that host) to -1. */
  affinity: number | null;
  /** When, by the deciding node's clock, milliseconds since 1970; with repetitions, the last time. */
  at: number;
  /** What was decided. */
  decision: DecisionWord;
  /** `source_load - target_load`. */
  gain: number | null;
  /** The smallest gain that counts. */
  min_gain: number;
  /** The id of the peer: the target, or the source if the deciding node took the VM in. None if no peer was considered. */
  peer: string | null;
  /** The load of the node that the VM is on. */
  source_load: number;
  /** The load of the target with the VM. */
  target_load: number | null;
  /** How often in a row the same was decided about the same peer. */
  times: number;
  /** The VM's id. */
  vm: string;
  /** How many CPUs the VM is expected to use. */
  vm_cpu: number;
}

/** What was decided about a VM. */
export type DecisionWord =
  /** The node is overloaded, but no peer that it knows is enough better. */
  | "kept"
  /** A peer was asked to take it. */
  | "offered"
  /** The peer refused it. */
  | { refused: RefusalWord }
  /** The peer did not answer. */
  | "unanswered"
  /** The peer takes it: the migration starts. */
  | "migrating"
  /** The migration succeeded. */
  | "moved"
  /** The migration failed; the VM stays. */
  | "failed"
  /** The migration was cancelled on request; the VM stays. */
  | "cancelled"
  /** The deciding node agreed to take it in. */
  | "taken_in"
  /** The source called it off. */
  | "called_off"
  /** A word of a later version. */
  | string;

/** One line of `p2pvm explain`. */
export interface Explained {
  /** When (RFC 3339). */
  at: string;
  /** The figures behind it; a member's report about itself has none. */
  details: DecisionFigures | null;
  /** The member that decided; empty for the member that was asked, until it is shown. */
  host: string;
  /** The decision and its reason. */
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

/** A finding about this machine. */
export interface FindingView {
  /** The remedy; empty if nothing is to be done. */
  advice: string;
  /** The part of the machine that it is about: "routes", "names", "path", ... */
  area: string;
  /** The fault, with its cause. */
  found: string;
  /** How grave it is. */
  level: "ok" | "warning" | "failed";
}

/** The state of a node. */
export type Health =
  /** A member with others, and nothing is wrong. */
  | "ok"
  /** No daemon answers. */
  | "down"
  /** The daemon runs and does not answer yet. */
  | "starting"
  /** The machine belongs to no network. */
  | "outside"
  /** A member, on its way to an address, to the first other member or to its place on the ring. */
  | "joining"
  /** The machine has no address on any network. */
  | "offline"
  /** A member of a network that has no other member yet. */
  | "alone"
  /** It works, but something is missing. */
  | "degraded"
  /** A word of a later version. */
  | string;

/** The health in one word, and the reason. */
export interface HealthView {
  /** The reason. */
  why: string;
  /** The word, as `p2pvm top` has it. */
  word: Health;
}

/** Which scheduled snapshots stay: the newest of each of so many hours, days and weeks. */
export interface KeepView {
  /** Of days, UTC. */
  days: number;
  /** Of hours. */
  hours: number;
  /** The newest ones. */
  last: number;
  /** Of weeks. */
  weeks: number;
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

/** A link as one of its ends sees it. */
export interface Link {
  /** The path in words, without the address: "direct", "relayed via name", "over the ring", "stream". */
  path: string;
  /** The kind of that path. */
  path_kind?: PathKind | null;
  /** The last measured round trip, milliseconds. */
  rtt_ms: number | null;
  /** The beginning of the other member's id. */
  to: string;
}

/** The request of `p2pvm vm migrate`. */
export interface MigrateVm {
  /** Whether post-copy is allowed. */
  post_copy?: boolean;
  /** The target: a name, id or address. None lets this host choose the least loaded peer it knows. */
  to?: string | null;
}

/** The answer to `p2pvm vm migrate --cancel`. */
export interface MoveCancelled {
  /** The name of the VM whose move is given up. */
  cancelled: string;
  /** The name of the member that it stays on. */
  host: string;
}

/** A move that is under way. */
export interface Moving {
  /** Its progress. */
  step: Step;
  /** The name of the target. */
  to: string;
}

/** The message that the dashboard's page gets instead of a console. */
export interface NoConsole {
  /** The reason why there is no console. */
  error: string;
}

/** What `p2pvm offer set` and `on` change; fields that are left out stay. The daemon keeps all changes in its state directory; they override `[offer]` in `node.toml`. */
export interface OfferChange {
  /** Processors for all guests together, those of this host's own root too; 0 for no limit. */
  all_cpus?: number | null;
  /** Memory for all guests together, MiB; 0 for all but a reserve. */
  all_memory_mib?: number | null;
  /** How much each VM of other members may send, and how much receive, bits a second; 0 for no limit. */
  bits_per_second?: number | null;
  /** Virtual processors for other members' VMs; 0 for no limit. */
  cpus?: number | null;
  /** Disk for other members' VMs, GiB; 0 for no limit. */
  disk_gib?: number | null;
  /** The hours in which other members' VMs run here, such as "18:00-08:00"; none for always. */
  hours?: string[] | null;
  /** How long after the last input this machine counts as idle, seconds. */
  idle_after_s?: number | null;
  /** Whether other members' VMs run here only while this machine is idle. */
  idle_only?: boolean | null;
  /** Memory for other members' VMs, MiB; 0 for no limit. */
  memory_mib?: number | null;
  /** Whether nothing is offered. */
  off?: boolean | null;
  /** Whether earlier changes are forgotten first, so that `node.toml` counts again. */
  reset?: boolean;
  /** The members that it is for: groups, "member:NAME", or "*" for all. */
  run?: string[] | null;
  /** How many VMs of other members may be here; 0 for no limit. */
  vms?: number | null;
}

/** The answer to `p2pvm offer off`. */
export interface OfferEnded {
  /** Whether its moves were stopped on request. */
  cancelled: boolean;
  /** VMs of other members that still run here, with the reason. */
  kept: VmStayed[];
  /** VMs that have moved. */
  moved: VmMoved[];
  /** VMs that could not be moved, with the reason, and were stopped. */
  stopped: VmStayed[];
}

/** What other members' VMs may have together; null for no limit. */
export interface OfferLimits {
  /** Virtual processors of running VMs. */
  cpus: number | null;
  /** Disks, as large as they may grow, MiB. */
  disk_mib: number | null;
  /** Memory of running VMs, MiB. */
  memory_mib: number | null;
  /** VMs, running or not. */
  vms: number | null;
}

/** The request of `p2pvm offer off`. */
export interface OfferOff {
  /** Whether VMs that cannot be moved run on. */
  keep?: boolean;
}

/** A part of a host. */
export interface OfferShare {
  /** Virtual processors of running VMs. */
  cpus: number;
  /** Disks, as large as they may grow, MiB. */
  disk_mib: number;
  /** Memory of running VMs, MiB. */
  memory_mib: number;
  /** VMs, running or not. */
  vms: number;
}

/** What the VMs of one member have here. */
export interface OfferTenant {
  /** The member's name. */
  member: string;
  /** What its VMs have together. */
  share: OfferShare;
}

/** The answer to `p2pvm offer show`. */
export interface OfferView {
  /** Processors for all guests together; null for no limit. */
  all_cpus: number | null;
  /** Memory for all guests together, MiB. */
  all_memory_mib: number;
  /** How much each VM of other members may send, and how much receive, bits a second; null for no limit. */
  bits_per_second: number | null;
  /** Whether changes by `p2pvm offer` count more than `node.toml`. */
  changed: boolean;
  /** Why no VM of another member is accepted now, whatever its size; null if one may be. */
  closed: string | null;
  /** Whether VMs of other members are being moved away because the offer has ended. */
  evacuating: boolean;
  /** This host's name. */
  host: string;
  /** The hours in which other members' VMs run here; none for always. */
  hours: string[];
  /** How long after the last input this machine counts as idle, seconds. */
  idle_after_s: number;
  /** Whether other members' VMs run here only while this machine is idle. */
  idle_only: boolean;
  /** The directories whose files other members may name as images. */
  images: string[];
  /** What is offered. */
  limits: OfferLimits;
  /** Whether it is switched off. */
  off: boolean;
  /** The members that it is for. */
  run: string[];
  /** Which member uses what. */
  tenants: OfferTenant[];
  /** What is used by all of them. */
  used: OfferShare;
}

/** What a host does with a guest whose lease it cannot renew. */
export type PartitionWord =
  /** It holds the guest shortly before the lease ends. */
  | "freeze"
  /** It lets the guest run until the lease ends, then freezes it. */
  | "run-until-lease-ends"
  /** It ends the guest. */
  | "stop";

/** The kind of a path that packets take to a member. */
export type PathKind =
  /** Directly to one of its addresses. */
  | "direct"
  /** Through another member. */
  | "relayed"
  /** Over the ring, from neighbour to neighbour. */
  | "ring"
  /** Over a stream of the control connection: UDP does not get through. */
  | "stream"
  /** A word of a later version. */
  | string;

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
  /** The kind of that path; missing while no answers come by it. */
  path_kind: PathKind | null;
  /** Bytes received over the link. */
  received_bytes: number;
  /** Its role on the ring for this node, if it is a neighbour there. */
  ring: RingNeighbour | null;
  /** The link's last measured round trip, milliseconds. */
  rtt_ms: number | null;
  /** Bytes sent over the link. */
  sent_bytes: number;
}

/** Whether a VM is protected against the loss of its host. */
export interface ProtectionView {
  /** The members that start it if its host is lost. */
  heirs: string[];
  /** How long its host is silent before it counts as lost, seconds. */
  lost_after_s: number;
  /** What its host does when it cannot renew the lease. */
  on_partition: PartitionWord;
  /** Whether it runs under a lease. */
  protected: boolean;
  /** Whether they do. */
  replace: ReplaceWord;
  /** In words: "protected, heirs attic, cellar", or "not protected" and why. */
  text: string;
}

/** One try to reach a member directly. */
export interface PunchView {
  /** Whether the two NATs, as far as known, allow a direct path. */
  allowed: boolean;
  /** From the first try to the direct path, milliseconds; none if there is none yet. */
  direct_ms: number | null;
  /** The other member's id. */
  member: string;
  /** How many times addresses were exchanged and tried. */
  tries: number;
}

/** The results of tries to reach members directly if at least one side has a NAT or a firewall. */
export interface PunchesView {
  /** How many of these succeeded. */
  direct: number;
  /** How many of these succeeded at the first try. */
  first_try: number;
  /** How many were begun although the NATs, as far as known, do not allow it. */
  hopeless: number;
  /** The newest tries. */
  list: PunchView[];
  /** The median time to a direct path of those listed, milliseconds. */
  median_ms: number | null;
  /** How many were begun where the NATs allow it. */
  tried: number;
}

/** Whether a guest answers its own host, through the guest's interface. */
export type ReachState =
  /** It answers. */
  | "answers"
  /** Its host drops packets for it. */
  | "blocked"
  /** It has answered before and does not now. */
  | "silent"
  /** It has not answered yet. */
  | "never"
  /** A word of a later version. */
  | string;

/** The reachability of a guest from its own host, through the guest's interface. */
export interface ReachView {
  /** How long its answer took, milliseconds. */
  rtt_ms: number | null;
  /** How long this has been its state, seconds. */
  seconds: number;
  /** Whether it answers. */
  state: ReachState;
  /** Why it does not answer, as far as its host can tell. */
  why: string | null;
}

/** Why a peer does not take a VM. */
export type RefusalWord =
  /** Its CPUs would be too busy. */
  | "Busy"
  /** Its memory would not suffice. */
  | "Memory"
  /** The VM would gain too little, by what it knows of its own load. */
  | "LittleGain"
  /** It is taking others in, or giving one away itself. */
  | "Occupied"
  /** It is being drained or has no measurement yet. */
  | "Unavailable"
  /** A word of a later version. */
  | string;

/** Whether another member starts a VM whose host is lost. */
export type ReplaceWord =
  /** By itself. */
  | "auto"
  /** When a person says so. */
  | "ask"
  /** Never. */
  | "never";

/** How well a running VM's disk is replicated to other members. */
export interface ReplicationView {
  /** How many other members hold it. */
  copies: number;
  /** How long between two replicas, seconds. */
  every_s: number;
  /** The same of the last round. */
  last_new_bytes: number;
  /** Whether it is older than twice the time between two replicas. */
  late: boolean;
  /** How many bytes of new chunks they made, which each holder fetches. */
  new_bytes: number;
  /** How many rounds its host has made since it started or the VM came. */
  rounds: number;
  /** How old the newest whole replica is, seconds: what the guest wrote since is lost with its host. None without a replica. */
  rpo_s: number | null;
  /** In words: "RPO 38 s", or "not replicated" and why. */
  text: string;
  /** How many should. */
  wanted: number;
  /** Why there is no newer one, if the last round did not succeed. */
  why: string | null;
}

/** Whether a guest that ended is started again on its host. */
export type RestartWord =
  /** Also one that powered itself off. */
  | "always"
  /** One that crashed. */
  | "on-failure"
  /** None. */
  | "never"
  /** A word of a later version. */
  | string;

/** The request of `p2pvm vm restore`. */
export interface RestoreVm {
  /** Whether to take the VM over from a host that cannot be asked. */
  force?: boolean;
  /** The member to restore it on: a name, id or address. None is the member that was asked. */
  on?: string | null;
  /** The snapshot's name; none for the newest snapshot or replica of its present state. */
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
  /** How many packets of other members this one has passed on. */
  carried: number;
  /** The expected relative error of this member's network coordinate: 0.1 means 10 % off. */
  coordinate_error: number;
  /** Far neighbours, drawn by the distance law. */
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
  /** Neighbours by shortcut, for much traffic. */
  shortcuts: number;
  /** The estimated number of members in the network. */
  size_estimate: number;
  /** Whether it has had its place since the daemon started. */
  was_joined: boolean;
}

/** What a token of the dashboard allows. */
export type Role =
  /** Sees everything, and starts, stops, moves, snapshots and restores VMs and uses their consoles. */
  | "operator"
  /** Sees everything and changes nothing. */
  | "reader"
  /** A word of a later version. */
  | string;

/** When snapshots of a VM are taken by themselves, and which stay. */
export interface ScheduleView {
  /** Whether they are of the disk alone. */
  disk_only: boolean;
  /** How many seconds lie between two. */
  every_seconds: number;
  /** Which stay. */
  keep: KeepView;
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
  /** The NAT or firewall in front of it. */
  nat: string;
  /** Its neighbours there. */
  neighbours: number;
  /** Its place on the ring. */
  position: string;
  /** Virtual machines running there. */
  running_vms: number;
}

/** The answer to `p2pvm vm snapshot`. The fields are in alphabetical order. */
export interface SnapshotTaken {
  /** The id of its checkpoint. */
  checkpoint: string;
  /** The members that hold all of it; none if that was not known in time. */
  holders: string[] | null;
  /** Its name. */
  name: string;
  /** How long the guest was paused, milliseconds. */
  pause_ms: number;
  /** As `SnapshotView::state`. */
  state: string;
  /** When it was taken (RFC 3339). */
  taken: string;
}

/** A snapshot as `vm show` prints it. */
export interface SnapshotView {
  /** Whether a schedule took it, and may delete it. */
  automatic?: boolean;
  /** The id of its checkpoint. */
  checkpoint?: string;
  /** The epoch in which it was taken. Of one epoch, later ones are later in the list. */
  epoch?: number;
  /** The members that hold all of it. */
  holders: string[];
  /** Its name. */
  name: string;
  /** "local", "replicating N of K", "durable" or "degraded N of K". */
  state: string;
  /** When it was taken (RFC 3339). */
  taken: string;
  /** Whether it has the guest's memory; without it a restored guest boots. */
  with_ram?: boolean;
}

/** The request of `p2pvm vm snapshot`. */
export interface SnapshotVm {
  /** Whether it is of the disk alone: a restored guest boots. */
  disk_only?: boolean;
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
  /** How many of them had a guest that answered through its interface when last asked. */
  answering_vms: number;
  /** Members with a live control connection. */
  connected: number;
  /** Load of this host's processors, 0 to 1. */
  cpu: number;
  /** The findings about this machine. */
  findings: FindingView[];
  /** The health of this node in one word, and the reason. */
  health: HealthView;
  /** Whether this member received contacts of others when it joined; the founder did not. */
  joined_another: boolean;
  /** The other members that it knows. */
  known: number;
  /** The addresses on which the daemon listens for members. */
  listen: string[];
  /** The port that the router maps to this node, if it does. */
  mapped: string | null;
  /** This member's id. */
  member: string;
  /** Its host name in the network. */
  name: string;
  /** The NAT or firewall in front of it. */
  nat: string;
  /** The network's name. */
  network: string;
  /** The network's id. */
  network_id: string;
  /** The results of tries to reach members directly. */
  punches: PunchesView;
  /** The address at which others see this node's packet port. */
  reflexive: string | null;
  /** Resident memory of the daemon, bytes. */
  resident_bytes: number;
  /** The state of this member on the ring. */
  ring: RingView;
  /** Virtual machines running here. */
  running_vms: number;
  /** How long this daemon's steps to a working address took, milliseconds. */
  start_ms: StartTimes;
  /** The subnet of the network's addresses. */
  subnet: string;
  /** Seconds since the daemon started. */
  up_seconds: number;
  /** The program's version. */
  version: string;
}

/** A step of a long operation. */
export interface Step {
  /** Bytes done in this phase. */
  done_bytes: number;
  /** Further figures to show beside the bar: dirty rate, expected downtime. */
  note: string;
  /** The phase, in a word or two. */
  phase: string;
  /** Bytes known to be needed, 0 if unknown. */
  total_bytes: number;
}

/** Why a guest is paused, with the room on its host's disk. */
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
  /** What the token of the request allows. */
  role: Role;
  /** Members that did not answer which VMs they have. */
  silent: string[];
  /** This node. */
  status: Status;
  /** The network's VMs. */
  vms: VmView[];
}

/** The answer to `p2pvm vm migrate` if the VM has moved. */
export interface VmMoved {
  /** How long the guest was paused by the hypervisor's own figure, milliseconds. */
  downtime_ms: number;
  /** The epoch of its present holding. */
  epoch: number;
  /** The name of the member that it was on. */
  from: string;
  /** The name of the member that it runs on. */
  host: string;
  /** The migration's id, as in the logs of both hosts. */
  migration: string;
  /** The VM's name. */
  name: string;
  /** From the guest's pause to the target's report that it runs there, milliseconds: an upper bound of the downtime. */
  pause_ms: number | null;
  /** RAM transferred, bytes. */
  ram_bytes: number;
  /** From the request to the end, milliseconds. */
  total_ms: number;
  /** The id of its trace, if it is traced. */
  trace?: string;
}

/** A VM's state, as the network shows it. */
export type VmStateView =
  /** Its guest executes on its host. */
  | "running"
  /** Its guest is held on its host. */
  | "paused"
  /** It has no guest. */
  | "stopped"
  /** It is being moved away; its guest still executes there. */
  | "leaving"
  /** It is being moved to this host, which waits for its guest. */
  | "arriving"
  /** It is held until the voters say whether it may run on this host. */
  | "doubtful"
  /** A copy that lost its VM, which went on elsewhere. */
  | "branch"
  /** A copy of a stopped VM that runs elsewhere now: nothing ran twice. */
  | "leftover"
  /** Another member has it. */
  | "remote"
  /** Its host does not answer, dead or cut off. */
  | "unreachable"
  /** Its host left the network or was expelled: no host will answer for it. */
  | "orphaned"
  /** A word of a later version. */
  | string;

/** A VM that a drain left where it is. */
export interface VmStayed {
  /** Its name. */
  name: string;
  /** Why it stays. */
  why: string;
}

/** A VM as `vm list` and `vm show` print it. */
export interface VmView {
  /** The operation on it now. */
  activity: ActivityView | null;
  /** Its IPv4 address, the same wherever it runs. */
  address: string;
  /** Its IPv6 address. */
  address_v6: string;
  /** The remedy for a VM whose host does not answer. */
  advice?: string;
  /** The bound of its bandwidth on its host; missing if there is none. */
  bandwidth?: BandwidthView | null;
  /** How many processors it keeps busy, as its host last measured. */
  cpu: number | null;
  /** Virtual processors. */
  cpus: number;
  /** The epoch of its present holding. */
  epoch: number;
  /** The name of the member that holds it. */
  host: string;
  /** The id of that member. */
  host_id: string;
  /** Its id. */
  id: string;
  /** The image below its disk. */
  image: string;
  /** When its host, which no longer answers, was last seen (RFC 3339). */
  last_seen?: string;
  /** Its Ethernet address. */
  mac: string;
  /** Memory, MiB. */
  memory_mib: number;
  /** The progress of its move to another member, if it is being moved. */
  moving: Moving | null;
  /** Its name. */
  name: string;
  /** Why it is in a state that its user did not ask for. */
  note: string | null;
  /** Whether it is protected against the loss of its host; missing if it does not run. */
  protection?: ProtectionView | null;
  /** Whether its guest answers through its interface, as its host last found; missing if it does not run. */
  reach: ReachView | null;
  /** How well its disk is replicated, if it is. */
  replication?: ReplicationView | null;
  /** Whether its guest is started again when it ends, if its host says so. */
  restart?: RestartWord | null;
  /** In the answer to a restore: the snapshot, or "replica", that it was restored from. */
  restored_from?: string;
  /** When snapshots of it are taken by themselves. */
  schedule?: ScheduleView | null;
  /** Its snapshots. */
  snapshots: SnapshotView[];
  /** Its state in a word. */
  state: VmStateView;
  /** Why its guest is paused without a request, if it is. */
  still: StillView | null;
  /** The key of the user that it is for; missing if it is for none. */
  user?: string;
  /** The members whose majority decides who may run it. */
  voters: string[];
}
