// The members as a table, which says in words what the map shows, and the latest decisions.

import { ms, percent, when } from "./format";
import type { Network } from "./model";
import type { Decided } from "./types";

export function Members({ net, selected, select }: { net: Network; selected: string | null; select: (member: string | null) => void }) {
  const heard = net.members.filter((m) => m.heard).length;
  return (
    <section class="panel" aria-labelledby="members-title">
      <h2 id="members-title">
        Members <small>{heard === net.members.length ? net.members.length : `${heard} of ${net.members.length} heard`}</small>
      </h2>
      <div class="scroll">
        <table>
          <thead>
            <tr>
              <th>Name</th>
              <th>Address</th>
              <th>Path from here</th>
              <th class="figure">RTT</th>
              <th class="figure">Load</th>
              <th class="figure">VMs</th>
              <th>NAT</th>
            </tr>
          </thead>
          <tbody>
            {net.members.map((m) => (
              <tr key={m.id} class={`${m.heard ? "" : "silent"}${selected === m.id ? " selected" : ""}`} onClick={() => select(selected === m.id ? null : m.id)}>
                <th scope="row">{m.name}</th>
                <td>{m.address ?? "-"}</td>
                <td>{m.here ? "this node" : !m.heard ? "not heard" : (m.path ?? "no link needed yet")}</td>
                <td class="figure">{m.here ? "" : ms(m.rttMs)}</td>
                <td class="figure">{m.cpu == null ? "-" : percent(m.cpu)}</td>
                <td class="figure">{m.vms.length}</td>
                <td>{m.nat ?? "-"}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

export function Decisions({ list }: { list: Decided[] }) {
  return (
    <section class="panel" aria-labelledby="decisions-title">
      <h2 id="decisions-title">Decisions</h2>
      {list.length === 0 && <p class="empty">None yet. The members' own decisions about VMs appear here, with their reasons.</p>}
      <ol class="decisions">
        {list.map((d) => (
          <li key={d.at + d.vm + d.host}>
            <time dateTime={d.at}>{when(d.at)}</time> <b>{d.vm}</b> <span>{d.text}</span> <small>decided on {d.host}</small>
          </li>
        ))}
      </ol>
    </section>
  );
}
