// A session like any other, in a browser: hold a button and speak, or pick a recording. It uses
// what docs/PROTOCOL.md says of /ws/session, and nothing else of the server.

import { address, announce, ask, el, heading, keepKey, keyOf, millis, number, say } from './page.js';

const RATE = 16000;
const PIECE = RATE / 5;
/** Milliseconds between two pieces of a recording: four times as fast as speech. */
const FILE_PACE_MS = 50;

function base64(samples) {
  const raw = new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength);
  let text = '';
  for (const byte of raw) text += String.fromCharCode(byte);
  return btoa(text);
}

function unbase64(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

export class TalkView {
  feed = 'pools';

  constructor() {
    const lang = (id, value) => el('input', {
      id, value, list: 'languages', size: 8, autocomplete: 'off', spellcheck: 'false', required: true,
    });
    this.from = lang('from', 'en');
    this.to = lang('to', 'es');
    this.languages = el('datalist', { id: 'languages' });
    this.served = el('p', { class: 'wide soft', id: 'served' });
    this.key = el('input', {
      id: 'session-key', type: 'password', autocomplete: 'off', value: keyOf('session'),
    });
    this.start = el('button', { type: 'submit', class: 'main' }, 'Open a session');
    this.end = el('button', { type: 'button', hidden: true, onclick: () => this.leave() }, 'End it');
    this.hold = el('button', {
      type: 'button', class: 'hold main', 'aria-pressed': 'false', disabled: true,
    }, 'Hold to speak');
    this.level = el('meter', { min: 0, max: 1, value: 0, 'aria-label': 'Loudness' });
    this.file = el('input', { id: 'file', type: 'file', accept: 'audio/*', disabled: true });
    this.state = el('p', { id: 'talk-state', role: 'status' }, 'No session.');
    this.log = el('div', { id: 'utterances' });
    const form = el('form', { onsubmit: (event) => {
      event.preventDefault();
      this.open();
    } },
    el('div', { class: 'fields' },
      el('label', { for: 'from' }, 'I speak'), this.from,
      el('label', { for: 'to' }, 'They hear'), this.to, this.languages, this.served,
      el('label', { for: 'session-key' }, 'Session key'), this.key,
      el('p', { class: 'wide soft' }, 'Only if this server asks sessions for one.')),
    el('p', null, this.start, ' ', this.end));
    this.node = el('div', null, heading('Talk'), el('div', { class: 'talk' },
      el('section', { class: 'card', 'aria-label': 'Speaker' }, form, this.state, this.hold, this.level,
        el('p', null, el('label', { for: 'file' }, 'Or a recording: '), this.file),
        el('p', { class: 'soft' }, 'Browsers give pages a microphone only on this host or over https.')),
      el('section', { 'aria-labelledby': 'h-said' }, el('h2', { id: 'h-said' }, 'What was said'), this.log)));
    this.buttons();
  }

  buttons() {
    const press = (event) => {
      event.preventDefault();
      this.speak();
    };
    const release = () => this.stop();
    this.hold.addEventListener('pointerdown', (event) => {
      this.hold.setPointerCapture?.(event.pointerId);
      press(event);
    });
    for (const name of ['pointerup', 'pointercancel', 'blur']) this.hold.addEventListener(name, release);
    const isKey = (event) => event.key === ' ' || event.key === 'Enter';
    this.hold.addEventListener('keydown', (event) => { if (isKey(event) && !event.repeat) press(event); });
    this.hold.addEventListener('keyup', (event) => { if (isKey(event)) release(); });
    this.file.addEventListener('change', () => this.sendFile());
  }

  take(name, d) {
    if (name !== 'pools') return;
    const pairs = d.pairs.map((p) => p.pair);
    const known = [...new Set(pairs.flatMap((p) => p.split(':')))].sort();
    const mark = known.join();
    if (mark !== this.mark) {
      this.mark = mark;
      this.languages.replaceChildren(...known.map((value) => el('option', { value })));
      const named = `${this.from.value}:${this.to.value}`;
      if (!this.socket && pairs.length && !pairs.includes(named)) {
        const two = pairs.find((p) => p.split(':')[0] !== p.split(':')[1]) ?? pairs[0];
        [this.from.value, this.to.value] = two.split(':');
      }
    }
    const shown = pairs.slice(0, 12).join(' ');
    say(this.served, pairs.length ? `Served now: ${shown}${pairs.length > 12 ? ' …' : ''}`
      : 'No pair has a node now: what is said waits for one.');
  }

  tell(text) {
    say(this.state, text);
  }

  async open() {
    this.leave();
    this.start.disabled = true;
    this.tell('opening…');
    keepKey('session', this.key.value.trim());
    try {
      // Asked for now, while a person has just pressed a button; speech that comes back may sound.
      this.audio ??= new AudioContext();
      await this.audio.resume();
      await this.connect(await this.token());
      await this.microphone();
    } catch (error) {
      this.tell(error.message);
      announce(error.message);
      if (!this.session) this.leave();
    }
    this.start.disabled = false;
  }

  /** A browser shows a token in the address, which it gets for a key. */
  async token() {
    if (!keyOf('session')) return null;
    try {
      return (await ask('POST', 'api/v1/session-tokens', { key: 'session' })).token;
    } catch (error) {
      if (error.status === 409) return null;
      throw new Error(`the session key: ${error.message}`);
    }
  }

  connect(token) {
    const at = address('ws/session');
    at.protocol = at.protocol === 'https:' ? 'wss:' : 'ws:';
    if (token) at.searchParams.set('access_token', token);
    const socket = new WebSocket(at);
    this.socket = socket;
    this.seq = 0;
    this.said = new Map();
    return new Promise((resolve, reject) => {
      socket.onopen = () => this.send({
        type: 'session_init', client_version: 'console', platform: 'web',
        src_lang: this.from.value.trim(), tgt_lang: this.to.value.trim(),
        audio_format: 'pcm16', sample_rate: RATE, extensions: ['typed_errors', 'accepted'],
      });
      socket.onmessage = ({ data }) => {
        const message = JSON.parse(data);
        if (message.type === 'session_init_ack') {
          this.session = message.session_id;
          this.tell(`session ${this.session}`);
          this.file.disabled = false;
          this.end.hidden = false;
          resolve();
        } else if (message.type === 'error' && !this.session) {
          reject(new Error(`${message.code}: ${message.message}`));
        } else {
          this.hear(message);
        }
      };
      socket.onclose = ({ code, reason }) => {
        const why = `the session's connection is closed${code === 1000 ? '' : ` (${code} ${reason})`}`;
        if (this.socket === socket) {
          this.ended();
          this.tell(why);
        }
        reject(new Error(`${why}; does this server ask for a session key?`));
      };
    });
  }

  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  async microphone() {
    if (!navigator.mediaDevices?.getUserMedia) {
      this.tell(`session ${this.session}: no microphone for this page, a recording will do`);
      return;
    }
    if (!this.capture) {
      let stream;
      try {
        stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
      } catch (error) {
        this.tell(`session ${this.session}: no microphone (${error.message}), a recording will do`);
        return;
      }
      this.stream = stream;
      await this.audio.audioWorklet.addModule(address('console/capture.js'));
      this.capture = new AudioWorkletNode(this.audio, 'capture', { numberOfOutputs: 0 });
      this.capture.port.onmessage = ({ data }) => this.piece(data.samples, data.last);
      this.audio.createMediaStreamSource(stream).connect(this.capture);
    }
    this.hold.disabled = false;
  }

  speak() {
    if (this.hold.disabled || this.speaking) return;
    this.speaking = true;
    this.hold.setAttribute('aria-pressed', 'true');
    say(this.hold, 'Speaking: let go to end');
    this.capture.port.postMessage('begin');
  }

  stop() {
    if (!this.speaking) return;
    this.speaking = false;
    this.hold.setAttribute('aria-pressed', 'false');
    say(this.hold, 'Hold to speak');
    this.level.value = 0;
    this.capture.port.postMessage('end');
  }

  piece(samples, last) {
    let sum = 0;
    for (const sample of samples) sum += sample * sample;
    const loud = samples.length ? Math.sqrt(sum / samples.length) / 32768 : 0;
    if (!last) this.level.value = Math.min(1, loud * 4);
    this.seq += 1;
    this.send({
      type: 'audio_chunk', session_id: this.session, seq: this.seq, is_final: last,
      payload: base64(samples), client_timestamp_ms: Date.now(),
    });
  }

  async sendFile() {
    const [file] = this.file.files;
    if (!file || !this.session) return;
    const session = this.session;
    try {
      const whole = new OfflineAudioContext(1, 1, RATE);
      const heard = await whole.decodeAudioData(await file.arrayBuffer());
      const samples = Int16Array.from(heard.getChannelData(0),
        (value) => Math.max(-1, Math.min(1, value)) * 32767);
      this.tell(`sending ${millis((samples.length * 1000) / RATE)} of ${file.name}`);
      for (let at = 0; at < samples.length; at += PIECE) {
        if (this.session !== session) return;
        this.piece(samples.slice(at, at + PIECE), at + PIECE >= samples.length);
        await new Promise((resolve) => { setTimeout(resolve, FILE_PACE_MS); });
      }
      this.tell(`session ${session}: the recording is sent`);
    } catch (error) {
      this.tell(`${file.name}: ${error.message}`);
    }
    this.level.value = 0;
    this.file.value = '';
  }

  /** The place of an utterance on the page. */
  utterance(index) {
    if (!this.said.has(index)) {
      const line = (kind) => el('p', { class: kind });
      const parts = {
        state: line('soft state'),
        heard: line('heard'),
        translated: line('translated'),
        speech: line('speech'),
      };
      parts.speech.setAttribute('aria-live', 'polite');
      parts.title = el('h3', null, `Utterance ${index}`);
      parts.node = el('article', { class: 'card utterance', 'data-index': index },
        parts.title, parts.translated, parts.heard, parts.state, parts.speech);
      this.said.set(index, parts);
      this.log.prepend(parts.node);
    }
    return this.said.get(index);
  }

  hear(message) {
    const at = message.utterance_index;
    switch (message.type) {
      case 'ui_event': {
        const failed = message.status === 'error';
        const words = [message.event.toLowerCase().replaceAll('_', ' '), message.error_code, message.hint];
        say(this.utterance(at).state, words.filter(Boolean).join(' '));
        this.utterance(at).state.classList.toggle('bad', failed);
        break;
      }
      case 'utterance_accepted':
        say(this.utterance(at).state, 'on disk');
        break;
      case 'asr_partial':
        say(this.utterance(at).heard, message.is_final ? message.text : `${message.text} …`);
        break;
      case 'translation_result':
        this.result(message);
        break;
      case 'missing_result':
        say(this.utterance(at).translated, `nothing: ${message.reason.replaceAll('_', ' ')}`);
        break;
      case 'error':
        this.tell(`${message.code}: ${message.message}`);
        break;
      case 'backpressure':
        this.tell('the server asks to wait a moment');
        break;
      default:
    }
  }

  async result(message) {
    const parts = this.utterance(message.utterance_index);
    say(parts.translated, message.text_translated);
    parts.translated.setAttribute('lang', this.to.value);
    say(parts.heard, message.text_asr);
    parts.heard.setAttribute('lang', this.from.value);
    parts.state.replaceChildren(el('a', { href: `#jobs/${message.job_id}` }, 'how it went'),
      message.late ? ', late' : '');
    if (!message.tts_audio) {
      say(parts.speech, 'no speech came with it');
      return;
    }
    try {
      const sound = await this.decode(message.tts_format, unbase64(message.tts_audio));
      say(parts.speech, `speech: ${number(sound.duration, 1)} s`);
      this.play(sound, message, parts);
    } catch (error) {
      say(parts.speech, `speech that this page cannot play (${message.tts_format}: ${error.message})`);
    }
  }

  async decode(format, raw) {
    if (format !== 'pcm16') return this.audio.decodeAudioData(raw.buffer);
    const samples = new Int16Array(raw.buffer, 0, raw.byteLength >> 1);
    const sound = this.audio.createBuffer(1, Math.max(samples.length, 1), RATE);
    sound.copyToChannel(Float32Array.from(samples, (sample) => sample / 32768), 0);
    return sound;
  }

  play(sound, { session_id: session, group_id: group, trace_id: trace }, parts) {
    const source = this.audio.createBufferSource();
    source.buffer = sound;
    source.connect(this.audio.destination);
    const tell = (type, name) => this.send({
      type, session_id: session, group_id: group, trace_id: trace, [name]: Date.now(),
    });
    source.onended = () => {
      tell('tts_play_ended', 'ts_end_ms');
      say(parts.speech, `speech: ${number(sound.duration, 1)} s, played`);
    };
    tell('tts_started', 'ts_start_ms');
    source.start();
  }

  /** The session is over, or never was. */
  ended() {
    this.stop();
    this.socket = null;
    this.session = null;
    this.hold.disabled = true;
    this.file.disabled = true;
    this.end.hidden = true;
  }

  leave() {
    this.send({ type: 'session_close', session_id: this.session, reason: 'left' });
    const { socket } = this;
    this.ended();
    socket?.close(1000);
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.capture?.disconnect();
    this.stream = null;
    this.capture = null;
    this.tell('No session.');
  }
}
