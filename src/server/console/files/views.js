// Overview, nodes, pools, sessions.

import {
  Table, Tile, announce, ask, bytes, clock, count, el, heading, millis, number, say, span, tiles,
} from './page.js';

export class OverviewView {
  feed = 'overview';

  constructor() {
    const t = this.tiles = {
      state: new Tile('state', 'Server'),
      sessions: new Tile('sessions', 'Sessions', 1),
      waiting: new Tile('waiting', 'Jobs that wait for a node', 1),
      busy: new Tile('busy', 'Jobs with nodes', 1),
      ended: new Tile('ended', 'Jobs ended a second', 1),
      failed: new Tile('failed', 'Not succeeded since the start'),
      wait: new Tile('wait', 'Wait for a slot, p50', 2),
      dispatch: new Tile('dispatch', 'From cut to node, p50', 2),
      node: new Tile('node', 'At the node, p50', 2),
      deliver: new Tile('deliver', 'From node to listener, p50', 2),
      nodes: new Tile('nodes-ready', 'Nodes ready', 1),
      slots: new Tile('slots', 'Slots in use', 1),
      pools: new Tile('pool-version', 'Pool snapshot'),
      queued: new Tile('queued', 'Writes that wait', 1),
      commit: new Tile('commit', 'Last commit', 1),
      disk: new Tile('disk', 'Free on the disk'),
      letters: new Tile('letters', 'Dead letters'),
    };
    const part = (title, id, ...some) => el('section', { 'aria-labelledby': id },
      el('h2', { id }, title), tiles(...some));
    this.node = el('div', null, heading('Overview'),
      tiles(t.state, t.sessions, t.waiting, t.busy, t.ended, t.failed),
      part('Times, over the last ten seconds', 'h-times', t.wait, t.dispatch, t.node, t.deliver),
      part('Nodes', 'h-nodes', t.nodes, t.slots, t.pools),
      part('Disk', 'h-disk', t.queued, t.commit, t.disk, t.letters),
      el('p', { class: 'soft' },
        'Pictures show up to two minutes, from when this page was opened; dashed lines are p99. '
        + 'Half of the times are no longer than p50, 99 of 100 no longer than p99, as far as the '
        + 'bounds of the histograms in /metrics tell.'));
  }

  take(_, d) {
    const t = this.tiles;
    const doing = d.draining ? ['going down', 'warn'] : d.ready ? ['ready', 'good'] : ['starting', 'warn'];
    t.state.show(doing[0], `up ${span(d.uptime_s)}, start ${d.boot_epoch}`, doing[1]);
    t.sessions.show(number(d.sessions.open),
      `${number(d.sessions.connected)} connected, ${number(d.rooms.open)} rooms`);
    t.sessions.spark.push(d.sessions.open);
    t.waiting.show(number(d.jobs.waiting));
    t.waiting.spark.push(d.jobs.waiting);
    t.busy.show(number(d.jobs.with_nodes), `${number(d.jobs.submitted)} since the start`);
    t.busy.spark.push(d.jobs.with_nodes);
    this.ended(d);
    for (const name of ['wait', 'dispatch', 'node', 'deliver']) {
      const time = d.times[name];
      const more = time.count ? `p99 ${millis(time.p99_ms)}, ${count(time.count, 'job')}` : 'no jobs';
      t[name].show(millis(time.p50_ms), more);
      t[name].spark.push(time.p50_ms, time.p99_ms);
    }
    const states = Object.entries(d.nodes.states).filter(([state]) => state !== 'ready');
    const others = states.map(([state, count]) => `${count} ${state}`);
    if (d.nodes.quarantined) others.push(`${d.nodes.quarantined} in quarantine`);
    const ready = d.nodes.states.ready ?? 0;
    t.nodes.show(number(ready), others.join(', '), ready ? '' : 'bad');
    t.nodes.spark.push(ready);
    t.slots.show(`${number(d.nodes.slots_used)} of ${number(d.nodes.slots_max)}`);
    t.slots.spark.push(d.nodes.slots_used);
    t.pools.show(number(d.pools.version), `${number(d.pools.pairs)} pairs served`);
    this.store(d.store);
  }

  ended(d) {
    const all = Object.values(d.jobs.ended).reduce((sum, n) => sum + n, 0);
    if (this.before && d.at_unix_ms > this.before.at) {
      const rate = (all - this.before.all) * 1000 / (d.at_unix_ms - this.before.at);
      this.tiles.ended.show(number(rate, 1), `${number(all)} since the start`);
      this.tiles.ended.spark.push(rate);
    } else {
      this.tiles.ended.show('–', `${number(all)} since the start`);
    }
    this.before = { at: d.at_unix_ms, all };
    const others = Object.entries(d.jobs.ended).filter(([how, n]) => how !== 'succeeded' && n > 0);
    const words = others.map(([how, n]) => `${number(n)} ${how}`).join(', ');
    this.tiles.failed.show(number(all - (d.jobs.ended.succeeded ?? 0)), words || 'none');
  }

  store(s) {
    const t = this.tiles;
    if (!s) {
      for (const tile of [t.queued, t.commit, t.disk, t.letters]) tile.show('–', 'nothing is kept');
      return;
    }
    const kind = s.health === 'well' ? '' : 'bad';
    const behind = s.behind_ms > 100 ? `, silent for ${millis(s.behind_ms)}` : '';
    t.queued.show(number(s.queued), `the store is ${s.health}${behind}`, kind);
    t.queued.spark.push(s.queued);
    t.commit.show(millis(s.last_commit_ms), `${number(s.commits)} since the start`);
    t.commit.spark.push(s.last_commit_ms);
    t.disk.show(bytes(s.free_bytes), `${bytes(s.file_bytes)} used, pressure: ${s.pressure}`);
    t.letters.show(number(s.dead_letters), s.bad_rows ? `${s.bad_rows} bad rows` : '',
      s.dead_letters ? 'warn' : '');
  }
}

const NODE_KINDS = { ready: 'good', degraded: 'warn', registering: 'warn', draining: 'warn' };

export class NodesView {
  feed = 'nodes';

  constructor() {
    const percent = (value) => (value === null || value === undefined ? '' : `${number(value)}\u00a0%`);
    const load = (n) => [['cpu', n.cpu], ['gpu', n.gpu], ['mem', n.mem]]
      .filter(([, v]) => v !== null && v !== undefined)
      .map(([name, v]) => `${name} ${percent(v)}`).join(', ');
    const services = (n) => n.services
      .map((s) => `${s.id}${s.status && s.status !== 'running' ? ` (${s.status})` : ''}`).join(', ');
    const missing = (n) => n.ready.filter((s) => !n.usable.includes(s));
    const trouble = (n) => [
      n.quarantined_s ? `in quarantine for ${span(n.quarantined_s)}` : '',
      n.failed ? `${n.failed} of the last ${n.remembered} failed` : '',
      n.overloaded ? 'overloaded' : '',
      missing(n).length ? `model missing: ${missing(n).join(', ')}` : '',
      n.silent_s > 30 && n.state !== 'offline' ? `silent for ${span(n.silent_s)}` : '',
    ].filter(Boolean).join('; ');
    const move = (n) => (n.state === 'offline' ? '' : n.state === 'draining' ? 'undrain' : 'drain');
    this.table = new Table('', [
      { name: 'Node', of: (n) => n.id, class: 'code id' },
      { name: 'State', of: (n) => [n.state, NODE_KINDS[n.state] ?? 'soft'] },
      { name: 'Slots', of: (n) => `${n.slots_used} of ${n.slots_max}`, class: 'number' },
      { name: 'Load', of: load },
      { name: 'Trouble', of: (n) => [trouble(n), 'bad'] },
      { name: 'Services', of: services },
      {
        name: 'Pairs',
        of: (n) => n.pairs.slice(0, 8).join(' ')
          + (n.pairs_total > 8 ? ` and ${n.pairs_total - 8} more` : ''),
        class: 'code',
      },
      { name: 'Program', of: (n) => `${n.version} on ${n.platform}` },
      { name: 'From', of: (n) => n.peer ?? '', class: 'code id' },
      {
        name: 'Do',
        of: move,
        label: (n) => `${move(n)} ${n.id}`,
        button: (n, button) => this.move(n, move(n), button),
      },
    ], (n) => n.id, 'No node has come yet. Start one: utterd node --engine echo');
    this.fault = el('p', { class: 'bad', role: 'alert' });
    this.node = el('div', null, heading('Nodes'), this.fault, this.table.node);
  }

  take(name, d) {
    if (name !== 'nodes') return;
    const shown = d.nodes.length < d.total ? `, ${d.nodes.length} shown` : '';
    this.table.show(d.nodes, `${number(d.total)} known${shown}`);
  }

  async move(node, what, button) {
    button.disabled = true;
    say(this.fault, '');
    try {
      const done = await ask('POST', `api/v1/nodes/${encodeURIComponent(node.id)}/${what}`);
      announce(`${node.id} is ${done.state}`);
    } catch (error) {
      say(this.fault, `${what} ${node.id}: ${error.message}`);
    }
    button.disabled = false;
  }
}

export class PoolsView {
  feed = 'pools';

  constructor() {
    this.about = el('p', { class: 'soft', id: 'pools-about' }, '…');
    this.matrix = el('div', {
      class: 'scrolls', tabindex: 0, role: 'region', 'aria-label': 'Pairs and the nodes that serve them',
    });
    this.why = new Table('Wanted, or could be, and no node serves them now', [
      { name: 'Pair', of: (p) => p.pair, class: 'code' },
      { name: 'For', of: (p) => p.wanted_by.join(', ') },
      { name: 'Why', of: (p) => p.why.join('; ') },
    ], (p) => p.pair, 'Every pair that is wanted is served.');
    const optional = (value, unit) => (value === null || value === undefined ? '' : `${value} ${unit}`);
    this.config = new Table('In the order in which they are looked at', [
      { name: 'Pool', of: (p) => p.name, class: 'code' },
      { name: 'Pairs', of: (p) => p.pairs.join(' '), class: 'code' },
      { name: 'Tenants', of: (p) => p.tenants.join(', ') || 'everyone' },
      { name: 'Services', of: (p) => p.required_services.join(', ') },
      { name: 'Weight', of: (p) => String(p.weight), class: 'number' },
      { name: 'Patience', of: (p) => optional(p.pending_ms, 'ms') },
      { name: 'Lease', of: (p) => optional(p.lease_base_ms, 'ms') },
      { name: 'Attempts', of: (p) => optional(p.attempts_max, '') },
    ], (p) => p.name, 'None: every pair has one pool, of all nodes that serve it.');
    this.node = el('div', null, heading('Pools'), this.about,
      el('h2', null, 'Languages'), this.matrix,
      el('h2', null, 'Without a node'), this.why.node,
      el('h2', null, 'Configured pools'), this.config.node);
  }

  take(name, d) {
    if (name !== 'pools') return;
    say(this.about, `Snapshot ${number(d.version)}, configuration ${number(d.config_version)}, `
      + `${number(d.pairs_total)} pairs served`
      + (d.pairs.length < d.pairs_total ? `, ${d.pairs.length} shown` : ''));
    this.why.show(d.unserved);
    this.config.show(d.config);
    this.languages(d.pairs);
  }

  languages(pairs) {
    if (pairs.length === 0) {
      this.matrix.replaceChildren(el('p', { class: 'empty' }, 'No pair has a node now.'));
      return;
    }
    const nodes = [...new Set(pairs.flatMap((p) => p.pools.flatMap((pool) => pool.nodes)))].sort();
    const cell = (pair, node) => {
      const pools = pair.pools.filter((pool) => pool.nodes.includes(node));
      const named = pools.filter((pool) => pool.configured).map((pool) => pool.name);
      if (pools.length === 0) return el('td', { class: 'no' }, '·', el('span', { class: 'unseen' }, 'no'));
      const words = named.length ? ` ${named.join(', ')}` : '';
      return el('td', { class: 'yes' }, '●', el('span', { class: 'unseen' }, 'yes'), words);
    };
    const head = el('tr', null, el('th', { scope: 'col' }, 'Pair'),
      nodes.map((node) => el('th', { scope: 'col', class: 'code' }, node)));
    const row = (pair) => el('tr', null, el('th', { scope: 'row', class: 'code' }, pair.pair),
      nodes.map((node) => cell(pair, node)));
    this.matrix.replaceChildren(el('table', { class: 'matrix' },
      el('caption', null, el('span', null,
        'A dot: the node serves the pair; beside it the configured pools it does so in')),
      el('thead', null, head), el('tbody', null, pairs.map(row))));
  }
}

export class SessionsView {
  feed = 'sessions';

  constructor() {
    const waits = (s) => [
      s.open_jobs ? count(s.open_jobs, 'job') : '',
      s.owed ? `${count(s.owed, 'result')} not acknowledged` : '',
    ].filter(Boolean).join(', ');
    this.table = new Table('', [
      { name: 'Session', of: (s) => s.id, class: 'code id' },
      { name: 'Languages', of: (s) => `${s.src} → ${s.tgt}` },
      { name: 'Connected', of: (s) => (s.peer ? [s.peer, 'code'] : ['away', 'warn']) },
      { name: 'Waits', of: waits },
      { name: 'Utterances', of: (s) => number(s.utterances), class: 'number' },
      { name: 'Room', of: (s) => s.room ?? '', class: 'code' },
      { name: 'Tenant', of: (s) => s.tenant ?? '' },
      { name: 'Program', of: (s) => `${s.version} on ${s.platform}` },
      { name: 'Since', of: (s) => clock(s.opened_unix_ms) },
      { name: 'Jobs', of: () => 'jobs', link: (s) => `#jobs/find/${encodeURIComponent(s.id)}` },
    ], (s) => s.id, 'Nobody is here. Try the Talk page, or: utterd speak --generated 2 --from en --to es');
    const member = (m) => `${m.display_name || m.session_id} hears ${m.hears ?? 'its own language'}`;
    this.rooms = new Table('', [
      { name: 'Room', of: (r) => r.room_code, class: 'code' },
      { name: 'Members', of: (r) => r.members.map(member).join('; ') },
      { name: 'Last spoken', of: (r) => clock(r.active_unix_ms) },
    ], (r) => r.room_code, 'There are no rooms.');
    this.node = el('div', null, heading('Sessions'), this.table.node,
      el('h2', null, 'Rooms'), this.rooms.node);
  }

  take(name, d) {
    if (name !== 'sessions') return;
    const of = (rows, total) => `${number(total)} open${rows.length < total ? `, ${rows.length} shown` : ''}`;
    this.table.show(d.sessions, of(d.sessions, d.total));
    this.rooms.show(d.rooms, of(d.rooms, d.rooms_total));
  }
}
