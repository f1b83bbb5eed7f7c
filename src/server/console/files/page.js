// Building blocks of pages. Text from elsewhere becomes text nodes, never markup.

const SVG = 'http://www.w3.org/2000/svg';

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) {
      node.setAttribute(name, String(value));
    }
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export function el(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Changes a text only if it is another, so that nobody is told the same again. */
export function say(node, text) {
  const next = text === null || text === undefined ? '' : String(text);
  if (node.textContent !== next) node.textContent = next;
}

/** Tells screen readers what was done on request; not what changes by itself. */
export function announce(text) {
  const said = document.getElementById('said');
  said.textContent = '';
  setTimeout(() => { said.textContent = text; }, 50);
}

const KEYS = { admin: 'utterd-admin-key', session: 'utterd-session-key' };

/** A key, kept for as long as the tab is open. */
export function keyOf(kind) {
  return sessionStorage.getItem(KEYS[kind]) ?? '';
}

export function keepKey(kind, text) {
  if (text) sessionStorage.setItem(KEYS[kind], text);
  else sessionStorage.removeItem(KEYS[kind]);
}

export function address(path) {
  return new URL(path, document.baseURI);
}

export function withKey(kind) {
  const key = keyOf(kind);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** One of the server's answers; what is wrong is thrown as a sentence. */
export async function ask(method, path, options = {}) {
  const headers = { ...withKey(options.key ?? 'admin') };
  let answer;
  try {
    answer = await fetch(address(path), { method, headers, cache: 'no-store' });
  } catch {
    throw new Error('the server does not answer');
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    const fault = new Error(body.error ?? `the server answers ${answer.status}`);
    fault.status = answer.status;
    throw fault;
  }
  return body;
}

export function number(value, digits = 0) {
  if (value === null || value === undefined || Number.isNaN(value)) return '–';
  return value.toLocaleString('en', { maximumFractionDigits: digits });
}

export function millis(value) {
  if (value === null || value === undefined) return '–';
  if (value >= 10_000) return `${number(value / 1000, 1)} s`;
  return `${number(value, value < 1 ? 3 : value < 10 ? 2 : value < 100 ? 1 : 0)} ms`;
}

export function bytes(value) {
  if (value === null || value === undefined) return '–';
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) {
    value /= 1024;
    at += 1;
  }
  return `${number(value, at === 0 ? 0 : 1)} ${units[at]}`;
}

export function span(seconds) {
  if (seconds === null || seconds === undefined) return '–';
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function clock(unixMs) {
  if (!unixMs) return '–';
  const at = new Date(unixMs);
  const time = at.toLocaleTimeString('en-GB');
  return at.toDateString() === new Date().toDateString()
    ? time
    : `${at.toISOString().slice(0, 10)} ${time}`;
}

/** So many of a thing. */
export function count(value, name) {
  return `${number(value)} ${name}${value === 1 ? '' : 's'}`;
}

export function heading(text) {
  return el('h1', { tabindex: -1 }, text);
}

/**
 * A table that is kept up to date: rows by key, cells only where they change, so that neither
 * focus nor a reading position is lost. A column has a `name` and `of(row)`, which is a text, a
 * `[text, class]`, or with `link` or `button` what these do. On a narrow page each row of a table of
 * the kind `cards` becomes a card.
 */
export class Table {
  constructor(caption, columns, key, empty, kind = 'cards') {
    this.columns = columns;
    this.key = key;
    this.rows = new Map();
    this.caption = el('caption', null, caption);
    const name = (c) => el('th', { scope: 'col', role: 'columnheader', class: c.class }, c.name);
    this.body = el('tbody', { role: 'rowgroup' });
    this.table = el('table', { class: kind, role: 'table' }, this.caption,
      el('thead', { role: 'rowgroup' }, el('tr', { role: 'row' }, columns.map(name))), this.body);
    this.empty = el('p', { class: 'empty' }, empty);
    // Until the server has told what there is, nothing is said of it.
    this.table.hidden = true;
    this.empty.hidden = true;
    this.node = el('div', { class: 'scrolls' }, this.table, this.empty);
  }

  show(data, caption) {
    if (caption) say(this.caption, caption);
    this.empty.hidden = data.length > 0;
    this.table.hidden = data.length === 0;
    const seen = new Set();
    let before = null;
    for (const item of data) {
      const key = String(this.key(item));
      if (seen.has(key)) continue;
      seen.add(key);
      let row = this.rows.get(key);
      if (!row) {
        row = this.make();
        this.rows.set(key, row);
      }
      row.item = item;
      this.update(row);
      const place = before ? before.nextSibling : this.body.firstChild;
      if (place !== row.node) this.body.insertBefore(row.node, place);
      before = row.node;
    }
    for (const [key, row] of this.rows) {
      if (!seen.has(key)) {
        row.node.remove();
        this.rows.delete(key);
      }
    }
  }

  make() {
    const row = { item: null, cells: [] };
    row.node = el('tr', { role: 'row' });
    this.columns.forEach((column, at) => {
      const tag = at === 0 ? 'th' : 'td';
      const cell = el(tag, {
        role: at === 0 ? 'rowheader' : 'cell',
        scope: at === 0 ? 'row' : null,
        'data-label': column.name,
      });
      let inner = cell;
      if (column.link) {
        inner = el('a', { href: '#' });
        cell.append(inner);
      } else if (column.button) {
        inner = el('button', { type: 'button', onclick: () => column.button(row.item, inner) });
        cell.append(inner);
      }
      row.cells.push({ cell, inner });
      row.node.append(cell);
    });
    return row;
  }

  update(row) {
    this.columns.forEach((column, at) => {
      const { cell, inner } = row.cells[at];
      const given = column.of(row.item);
      const [text, kind] = Array.isArray(given) ? given : [given, ''];
      say(inner, text);
      const nothing = text === '' || text === null || text === undefined;
      const classes = [column.class ?? '', kind, nothing ? 'nothing' : ''].filter(Boolean);
      const joined = classes.join(' ');
      if (cell.className !== joined) cell.className = joined;
      if (column.link) inner.setAttribute('href', column.link(row.item));
      if (column.button) {
        inner.hidden = nothing;
        const label = column.label?.(row.item);
        if (label && inner.getAttribute('aria-label') !== label) {
          inner.setAttribute('aria-label', label);
        }
      }
    });
  }
}

/** The last values of some lines, as a small picture. What it shows stands beside it as text. */
export class Spark {
  constructor(lines) {
    this.series = Array.from({ length: lines }, () => []);
    const line = (at) => svg('polyline', { class: at === 0 ? 'line' : 'line high' });
    this.lines = this.series.map((_, at) => line(at));
    this.node = svg('svg', {
      class: 'spark', viewBox: '0 0 120 30', preserveAspectRatio: 'none', 'aria-hidden': 'true',
    }, svg('line', { class: 'floor', x1: 0, y1: 29.5, x2: 120, y2: 29.5 }), this.lines);
  }

  push(...values) {
    values.forEach((value, at) => {
      this.series[at].push(value ?? null);
      if (this.series[at].length > 121) this.series[at].shift();
    });
    const top = Math.max(...this.series.flat().filter((v) => v !== null), 1e-9);
    this.series.forEach((series, at) => {
      const start = 121 - series.length;
      const points = series
        .map((v, i) => (v === null ? null : `${start + i},${(29 - (v / top) * 27).toFixed(1)}`));
      this.lines[at].setAttribute('points', points.filter(Boolean).join(' '));
    });
  }
}

/** A labelled value with its history. */
export class Tile {
  constructor(id, name, lines) {
    this.value = el('dd', { id });
    this.more = el('dd', { class: 'more' });
    this.spark = lines ? new Spark(lines) : null;
    this.node = el('div', { class: 'tile' }, el('dt', null, name), this.value, this.more,
      this.spark ? el('dd', { class: 'picture' }, this.spark.node) : null);
  }

  show(text, more = '', kind = '') {
    say(this.value, text);
    say(this.more, more);
    if (this.value.className !== kind) this.value.className = kind;
  }
}

export function tiles(...all) {
  return el('dl', { class: 'tiles' }, all.map((tile) => tile.node));
}
