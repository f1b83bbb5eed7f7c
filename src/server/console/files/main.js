// The frame around the views: which one is shown, what it is told, and how old that is.

import { announce, keepKey, say } from './page.js';
import { Feed } from './feed.js';
import { NodesView, OverviewView, PoolsView, SessionsView } from './views.js';
import { JobsView } from './jobs.js';
import { TalkView } from './talk.js';

const VIEWS = {
  overview: OverviewView,
  nodes: NodesView,
  pools: PoolsView,
  jobs: JobsView,
  sessions: SessionsView,
  talk: TalkView,
};

const main = document.getElementById('main');
const freshness = document.getElementById('freshness');
const form = document.getElementById('key-form');
const field = document.getElementById('key');
const shown = new Map();
let current = null;
let wasLost = false;

const feed = new Feed((name, data) => {
  if (name === 'overview') {
    say(document.getElementById('version'), data.version);
    shown.get('overview')?.take('overview', data);
  }
  if (current && name !== 'overview') current.take(name, data);
}, (state, text) => {
  if (freshness.dataset.state !== state) {
    freshness.dataset.state = state;
    document.body.dataset.feed = state;
    if (state === 'lost') announce('Connection to the server lost; the figures are old.');
    if (state === 'live' && wasLost) announce('Connected again.');
    wasLost = state === 'lost' || (wasLost && state !== 'live');
  }
  say(freshness, text);
  form.hidden = state !== 'locked';
});

form.addEventListener('submit', (event) => {
  event.preventDefault();
  keepKey('admin', field.value.trim());
  field.value = '';
  feed.again();
});

/** A part of an address, as far as it is one. */
function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function route() {
  const [name, ...rest] = location.hash.slice(1).split('/').map(decoded);
  const view = VIEWS[name] ? name : 'overview';
  if (!shown.has(view)) shown.set(view, new VIEWS[view]());
  const next = shown.get(view);
  if (current !== next) {
    current?.leave?.();
    current = next;
    main.replaceChildren(next.node);
    main.classList.toggle('talks', view === 'talk');
    for (const link of document.querySelectorAll('nav a')) {
      if (link.getAttribute('href') === `#${view}`) link.setAttribute('aria-current', 'page');
      else link.removeAttribute('aria-current');
    }
    feed.watch(next.feed);
  }
  next.enter?.(rest);
  const title = next.node.querySelector('h1');
  document.title = `${title?.textContent ?? view} – utterd`;
  if (name) title?.focus();
}

window.addEventListener('hashchange', () => {
  // The link that skips the head is none to a view.
  if (location.hash === '#main') main.focus();
  else route();
});
route();
