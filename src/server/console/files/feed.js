// What the server tells once a second, and how long ago it last did.

import { address, withKey } from './page.js';

/** Seconds without a word after which what is shown counts as old. */
const STALE_S = 3.5;
const RETRY_MS = [500, 1000, 2000, 5000];

export class Feed {
  /** `onEvent(view, data)` hears pictures, `onState(state, text)` how it stands. */
  constructor(onEvent, onState) {
    this.onEvent = onEvent;
    this.onState = onState;
    this.heard = 0;
    this.failures = 0;
    this.trouble = '';
    this.locked = false;
    setInterval(() => this.tell(), 500);
  }

  /** Looks at another view. */
  watch(view) {
    this.view = view;
    this.again();
  }

  /** Connects anew, at once. */
  again() {
    this.abort?.abort();
    clearTimeout(this.timer);
    this.abort = new AbortController();
    this.run(this.abort.signal);
  }

  async run(signal) {
    try {
      const path = `api/v1/console/feed?view=${encodeURIComponent(this.view)}`;
      const headers = withKey('admin');
      const answer = await fetch(address(path), { headers, signal, cache: 'no-store' });
      this.locked = answer.status === 401 || answer.status === 403;
      if (!answer.ok) {
        const body = await answer.json().catch(() => ({}));
        throw new Error(body.error ?? `the server answers ${answer.status}`);
      }
      await this.read(answer.body.getReader());
      throw new Error('the server ended it');
    } catch (error) {
      if (signal.aborted) return;
      this.trouble = error.message;
      const pause = RETRY_MS[Math.min(this.failures, RETRY_MS.length - 1)];
      this.failures += 1;
      this.tell();
      if (!this.locked) this.timer = setTimeout(() => this.again(), pause);
    }
  }

  async read(reader) {
    const decoder = new TextDecoder();
    let rest = '';
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      for (let end = rest.indexOf('\n\n'); end >= 0; end = rest.indexOf('\n\n')) {
        this.take(rest.slice(0, end));
        rest = rest.slice(end + 2);
      }
    }
  }

  take(event) {
    const [name, data] = event.split('\n');
    if (!name?.startsWith('event: ') || !data?.startsWith('data: ')) return;
    this.heard = performance.now();
    this.failures = 0;
    this.trouble = '';
    this.onEvent(name.slice(7), JSON.parse(data.slice(6)));
    this.tell();
  }

  tell() {
    const ago = (performance.now() - this.heard) / 1000;
    const last = this.heard ? `last heard ${Math.floor(ago)} s ago` : 'nothing heard yet';
    if (this.locked) this.onState('locked', this.trouble);
    else if (this.trouble) this.onState('lost', `connection lost, ${last}`);
    else if (!this.heard) this.onState('connecting', 'connecting…');
    else if (ago > STALE_S) this.onState('stale', last);
    else this.onState('live', 'live');
  }
}
