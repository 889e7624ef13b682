// What the daemon says, as api/src/node.rs and daemon/src/web/view.rs have it. Fields that the page does not use are left out.

/** A step of something that takes long. */
export interface Step {
  phase: string;
  done_bytes: number;
  total_bytes: number;
  note: string;
}

/** Why something was not done, and what to do. */
export interface Failure {
  kind: string;
  message: string;
  /** Somebody asked for it to end so: nothing is wrong. */
  cancelled?: boolean;
}

/** One line of a streamed answer. */
export type Line = { progress: Step } | { item: unknown } | { done: unknown } | { error: Failure };

/** The node that serves this page. */
export interface Status {
  member: string;
  name: string;
  network: string;
  address: string | null;
  nat: string;
  cpu: number;
  up_seconds: number;
  resident_bytes: number;
  version: string;
}

/** Another member, as this node sees it. */
export interface Peer {
  member: string;
  name: string;
  address: string | null;
  connected: boolean;
  path: string | null;
  rtt_ms: number | null;
}

/** A link, as the member at its one end sees it. */
export interface Link {
  /** The beginning of the other member's id. */
  to: string;
  path: string;
  rtt_ms: number | null;
}

/** A decision and its reason. */
export interface Decision {
  vm: string;
  at: string;
  host: string;
  text: string;
}

/** A member, as it describes itself. */
export interface Sight {
  member: string;
  name: string;
  address: string | null;
  nat: string;
  cpu: number;
  running_vms: number;
  links: Link[];
  decisions: Decision[];
}

export interface Snapshot {
  name: string;
  taken: string;
  state: string;
  holders: string[];
}

export interface Vm {
  name: string;
  id: string;
  state: string;
  host: string;
  host_id: string;
  address: string;
  cpus: number;
  memory_mib: number;
  epoch: number;
  activity: string | null;
  note: string | null;
  /** Why its guest stands still though nobody asked for it. */
  still?: { why: string; path: string; free_bytes: number; needed_bytes: number } | null;
  /** When its host, which does not answer any more, was seen last. */
  last_seen?: string;
  /** What a person can do about a VM whose host does not answer. */
  advice?: string;
  cpu: number | null;
  moving: { to: string; step: Step } | null;
  snapshots: Snapshot[];
}

/** Everything at one look. */
export interface View {
  status: Status;
  health: { word: string; why: string };
  peers: Peer[];
  members: Sight[];
  vms: Vm[];
  silent: string[];
}

/** One line of `p2pvm explain`. */
export interface Explained {
  at: string;
  host: string;
  text: string;
}
