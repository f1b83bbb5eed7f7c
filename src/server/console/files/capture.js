// Runs beside the page: hands on what the microphone hears as 16-bit samples, 16,000 a second, in
// pieces of 200 ms. Where the device runs at another rate, neighbouring samples are averaged.

const RATE = 16000;
const PIECE = RATE / 5;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.on = false;
    this.piece = new Int16Array(PIECE);
    this.filled = 0;
    this.sum = 0;
    this.count = 0;
    this.phase = 0;
    this.port.onmessage = ({ data }) => {
      if (data === 'begin') {
        this.filled = 0;
        this.on = true;
      } else if (data === 'end' && this.on) {
        this.on = false;
        this.hand(true);
      }
    };
  }

  hand(last) {
    const samples = this.piece.slice(0, this.filled);
    this.filled = 0;
    this.port.postMessage({ samples, last }, [samples.buffer]);
  }

  put(value) {
    this.piece[this.filled] = Math.max(-1, Math.min(1, value)) * 32767;
    this.filled += 1;
    if (this.filled === PIECE) this.hand(false);
  }

  process([input]) {
    if (!this.on || !input?.length) return true;
    const step = RATE / sampleRate;
    for (const value of input[0]) {
      this.sum += value;
      this.count += 1;
      this.phase += step;
      while (this.phase >= 1) {
        this.phase -= 1;
        this.put(this.count ? this.sum / this.count : value);
        this.sum = 0;
        this.count = 0;
      }
    }
    return true;
  }
}

registerProcessor('capture', Capture);
