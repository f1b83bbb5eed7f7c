// The latest jobs, looking for others, one job's life as a picture, and the dead letters.

import { Table, announce, ask, clock, el, heading, millis, number, say, svg } from './page.js';

const KINDS = {
  succeeded: 'good', empty: 'soft', merged: 'soft', failed: 'bad', expired: 'bad', cancelled: 'warn',
};
const us = (value) => (value === null || value === undefined ? '' : millis(value / 1000));
const pair = (job) => (job.src ? `${job.src} → ${job.tgt}` : '');

function jobTable(caption, empty) {
  return new Table(caption, [
    {
      name: 'Job',
      of: (j) => `${j.id.slice(0, 12)}…${j.id.slice(-6)}`,
      link: (j) => `#jobs/${encodeURIComponent(j.id)}`,
      class: 'code id',
    },
    { name: 'Made', of: (j) => clock(j.made_unix_ms) },
    { name: 'State', of: (j) => [j.code ? `${j.state}: ${j.code}` : j.state, KINDS[j.state] ?? ''] },
    { name: 'Languages', of: pair },
    { name: 'Speech', of: (j) => (j.audio_ms ? millis(j.audio_ms) : ''), class: 'number' },
    { name: 'To the node', of: (j) => us(j.dispatch_us), class: 'number' },
    { name: 'To the result', of: (j) => us(j.took_us), class: 'number' },
    { name: 'Node', of: (j) => j.node ?? '', class: 'code id' },
    { name: 'Attempts', of: (j) => (j.attempts > 1 ? [String(j.attempts), 'warn'] : ''), class: 'number' },
    { name: 'Session', of: (j) => `${j.session} #${j.index}`, class: 'code id' },
  ], (j) => j.id, empty);
}

export class JobsView {
  feed = 'jobs';

  constructor() {
    this.node = el('div');
    this.states = el('p', { class: 'soft', id: 'job-states' });
    this.latest = jobTable('The latest jobs, also of before a restart', 'No job has been made yet.');
    this.found = jobTable('', 'Nothing is found.');
    this.field = el('input', { id: 'q', type: 'search', spellcheck: 'false', autocomplete: 'off' });
    this.more = el('button', { type: 'button', onclick: () => this.find(this.before) }, 'Further back');
    this.about = el('p', { class: 'soft' });
    this.results = el('section', { 'aria-label': 'Found', hidden: true },
      el('h2', null, 'Found'), this.about, this.found.node, el('p', null, this.more));
    this.letters = new Letters();
    this.list = el('div', null, heading('Jobs'),
      el('form', { class: 'row', role: 'search', onsubmit: (event) => {
        event.preventDefault();
        this.rows = [];
        this.find(null);
      } },
      el('label', { for: 'q' }, 'Find'), this.field, el('button', { type: 'submit' }, 'Search'),
      el('span', { class: 'soft' }, 'ids, sessions, nodes, states, codes, tenants, or en:es')),
      this.results, el('h2', null, 'Latest'), this.states, this.latest.node, this.letters.node);
  }

  enter([job, text]) {
    if (job && job !== 'find') {
      this.one = new OneJob(job);
      this.node.replaceChildren(this.one.node);
      return;
    }
    this.one = null;
    this.node.replaceChildren(this.list);
    this.letters.load();
    if (text) {
      this.field.value = text;
      this.rows = [];
      this.find(null);
    }
  }

  take(name, d) {
    if (name !== 'jobs') return;
    this.latest.show(d.jobs);
    const states = Object.entries(d.states).map(([state, count]) => `${number(count)} ${state}`);
    say(this.states, states.length ? `In memory: ${states.join(', ')}` : 'None in memory.');
    this.one?.take(d.jobs);
  }

  async find(before) {
    this.results.hidden = false;
    say(this.about, 'searching…');
    const query = new URLSearchParams({ q: this.field.value });
    if (before) query.set('before', before);
    try {
      const d = await ask('GET', `api/v1/console/jobs?${query}`);
      this.rows = (this.rows ?? []).concat(d.jobs);
      this.before = d.more_before;
      this.found.show(this.rows);
      this.more.hidden = !d.more_before;
      const told = `${number(this.rows.length)} found, ${number(d.looked_at)} jobs looked at`
        + (d.more_before ? '; there may be more' : '');
      say(this.about, told);
      announce(told);
    } catch (error) {
      this.more.hidden = true;
      say(this.about, error.message);
    }
  }
}

/** One job: its borders with their times, its placements with their reasons, its end. */
class OneJob {
  constructor(id) {
    this.id = id;
    this.body = el('div', null, el('p', null, '…'));
    this.node = el('div', null, el('p', null, el('a', { href: '#jobs' }, '← Jobs')),
      el('h1', { tabindex: -1, class: 'code' }, id), this.body);
    this.load();
  }

  /** Looks again while the job goes on. */
  take(latest) {
    const now = latest.find((job) => job.id === this.id);
    const mark = now ? JSON.stringify([now.state, now.attempts, now.took_us]) : this.mark;
    const settled = this.job?.stamps_us?.settled !== undefined;
    const told = this.job?.stamps_us?.acknowledged !== undefined;
    const looks = settled && !told ? (this.looks = (this.looks ?? 0) + 1) <= 5 : false;
    if (mark !== this.mark || looks) this.load();
    this.mark = mark;
  }

  async load() {
    try {
      this.job = await ask('GET', `api/v1/jobs/${encodeURIComponent(this.id)}`);
      this.body.replaceChildren(...this.parts(this.job));
    } catch (error) {
      if (!this.job) this.body.replaceChildren(el('p', { class: 'bad', role: 'alert' }, error.message));
    }
  }

  parts(job) {
    const stamps = Object.entries(job.stamps_us ?? {});
    const parts = [this.facts(job)];
    if (stamps.length) {
      parts.push(el('h2', null, 'Timeline'), el('div', { class: 'card' }, timeline(job, stamps)),
        this.borders(stamps));
    }
    parts.push(el('h2', null, 'Placements'), ...this.placements(job));
    return parts;
  }

  facts(job) {
    const ended = job.ended ?? (job.code === undefined ? null : { ...job, outcome: job.code || 'ended' });
    const fact = (name, value) => (value === null || value === undefined || value === '' ? []
      : [el('dt', null, name), el('dd', null, String(value))]);
    const words = ended ? [ended.outcome, ended.code, ended.message].filter(Boolean).join(': ') : job.state;
    return el('dl', { class: 'facts card' },
      fact('State', words),
      fact('Ended', ended && clock(ended.at_unix_ms ?? ended.settled_unix_ms)),
      fact('Languages', job.src_lang && `${job.src_lang} → ${job.tgt_lang}`),
      fact('Speech', job.audio_ms && `${millis(job.audio_ms)} of ${job.audio_format}, cut by ${job.cut}`),
      fact('Session', `${job.session_id} #${job.utterance_index}`),
      fact('Tenant', job.tenant),
      fact('Node', ended?.node),
      fact('Attempts', job.attempts ?? ended?.attempts),
      fact('Trace', job.trace_id));
  }

  borders(stamps) {
    const table = new Table('Each border, when it was crossed, and how long after the one before', [
      { name: 'Border', of: ([name]) => name },
      { name: 'At', of: ([, at]) => millis(at / 1000), class: 'number' },
      {
        name: 'After',
        of: ([, , after]) => (after === null ? '' : `+ ${millis(after / 1000)}`),
        class: 'number',
      },
    ], ([name]) => name, '', 'small');
    table.show(stamps.map(([name, at], i) => [name, at, i ? at - stamps[i - 1][1] : null]));
    return table.node;
  }

  placements(job) {
    const looks = job.placements ?? [];
    if (looks.length === 0) return [el('p', { class: 'empty' }, 'No node was looked for.')];
    const shown = looks.map((look, at) => {
      const how = look.node
        ? `${look.node} chosen from pool ${look.pool}, attempt ${look.attempt_id}`
        : `no node: ${look.why_none}`;
      const table = new Table('Candidates', [
        { name: 'Node', of: (c) => c.node, class: 'code' },
        { name: 'Verdict', of: (c) => [c.verdict, c.verdict === 'chosen' ? 'good' : ''] },
      ], (c) => `${c.node} ${c.verdict}`, 'There were no candidates.', 'small');
      table.show(look.considered ?? []);
      const more = look.more ? el('p', { class: 'soft' }, `and ${look.more} more`) : null;
      const words = el('p', null, `After ${millis(look.at_us / 1000)}: ${how}; snapshot ${look.snapshot}`);
      return el('section', { 'aria-label': `Placement ${at + 1}` }, words, table.node, more);
    });
    const left = (job.placements_made ?? looks.length) - looks.length;
    return left > 0 ? [...shown, el('p', { class: 'soft' }, `${left} further ones are not kept`)] : shown;
  }
}

/**
 * The borders as bars from one to the next. What comes before the cut is as long as somebody
 * spoke, what comes after is what this server and its nodes took, so each has a scale of its own.
 */
function timeline(job, stamps) {
  const page = document.getElementById('main').clientWidth;
  const width = Math.max(300, Math.min(page - 80, 1000));
  const [labels, row, top] = [94, 24, 30];
  const height = top + stamps.length * row + 8;
  const cut = job.stamps_us.cut ?? stamps[0][1];
  const end = Math.max(stamps.at(-1)[1], cut + 1, ...stamps.map(([, at]) => at));
  const room = width - labels - 90;
  const split = cut > 0 ? room * 0.2 : 0;
  const x = (at) => labels + (at <= cut
    ? (cut > 0 ? (at / cut) * split : 0)
    : split + ((at - cut) / (end - cut)) * (room - split));
  const words = stamps.map(([name, at]) => `${name} at ${millis(at / 1000)}`).join(', ');
  const picture = svg('svg', {
    class: 'timeline',
    width,
    height,
    viewBox: `0 0 ${width} ${height}`,
    role: 'img',
    'aria-label': `Timeline: ${words}`,
  });
  picture.append(
    svg('line', { class: 'rule', x1: x(cut), x2: x(cut), y1: top - 8, y2: height }),
    svg('line', { class: 'rule', x1: x(end), x2: x(end), y1: top - 8, y2: height }));
  if (split > 50) picture.append(svg('text', { class: 'soft', x: labels, y: 16 }, 'speech'));
  const took = end > cut + 1 ? `: ${millis((end - cut) / 1000)}` : '';
  picture.append(svg('text', { class: 'soft', x: x(cut) + 4, y: 16 }, `after the cut${took}`));
  for (const look of job.placements ?? []) {
    if (look.at_us >= cut) {
      const at = x(look.at_us);
      picture.append(svg('line', { class: 'try', x1: at, x2: at, y1: top - 8, y2: height },
        svg('title', null, look.node ? `placed on ${look.node}` : `no node: ${look.why_none}`)));
    }
  }
  stamps.forEach(([name, at], i) => {
    const from = i ? stamps[i - 1][1] : at;
    const [left, right] = [x(Math.min(from, at)), x(at)];
    const y = top + i * row;
    const kind = at <= cut ? 'bar speech'
      : ['settled', 'durable', 'delivered', 'acknowledged'].includes(name) ? 'bar after' : 'bar';
    picture.append(
      svg('text', { x: 0, y: y + 13 }, name),
      svg('rect', { class: kind, x: left, y: y + 3, width: Math.max(right - left, 2.5), height: 13, rx: 2 }),
      svg('text', { class: 'soft', x: Math.max(right, left + 2.5) + 6, y: y + 14 },
        i ? `+ ${millis((at - from) / 1000)}` : millis(at / 1000)));
  });
  return picture;
}

/** What could not be brought to its end. */
class Letters {
  constructor() {
    this.fault = el('p', { class: 'bad', role: 'alert' });
    this.table = new Table('', [
      { name: 'Letter', of: (l) => String(l.id) },
      { name: 'Since', of: (l) => clock(l.created_unix_ms) },
      { name: 'Why', of: (l) => [[l.why, l.code, l.message].filter(Boolean).join(': '), 'bad'] },
      { name: 'Languages', of: (l) => (l.asked ? `${l.asked.src_lang} → ${l.asked.tgt_lang}` : '') },
      { name: 'Session', of: (l) => `${l.session_id} #${l.utterance_index}`, class: 'code' },
      {
        name: 'Job',
        of: (l) => (l.job_id ? `${l.job_id.slice(0, 12)}…` : ''),
        link: (l) => `#jobs/${encodeURIComponent(l.job_id ?? '')}`,
        class: 'code',
      },
      {
        name: 'Do',
        of: (l) => (l.can_resend ? 'send again' : ''),
        label: (l) => `send letter ${l.id} again`,
        button: (l, button) => this.resend(l, button),
      },
    ], (l) => l.id, 'There are none.');
    const again = el('button', { type: 'button', onclick: () => this.load() }, 'Look again');
    this.node = el('section', { 'aria-labelledby': 'h-letters' },
      el('h2', { id: 'h-letters' }, 'Dead letters'), this.fault, this.table.node, el('p', null, again));
  }

  async load() {
    try {
      const { dead_letters: letters } = await ask('GET', 'api/v1/dead-letters');
      say(this.fault, '');
      this.table.show(letters, `${number(letters.length)} kept`);
    } catch (error) {
      if (error.status === 404) say(this.table.empty, error.message);
      else say(this.fault, error.message);
    }
  }

  async resend(letter, button) {
    button.disabled = true;
    say(this.fault, '');
    try {
      const done = await ask('POST', `api/v1/dead-letters/${letter.id}/resend`);
      announce(`Letter ${letter.id} is job ${done.job_id} now`);
      location.hash = `#jobs/${done.job_id}`;
    } catch (error) {
      say(this.fault, `letter ${letter.id}: ${error.message}`);
      button.disabled = false;
    }
  }
}
