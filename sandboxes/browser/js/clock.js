// Runs in every frame before the page's own scripts: time stands still until run() moves it, and chance is seeded.
// It makes honest pages repeatable. It is no wall: a page that fights it loses its own repeatability and nothing else.
(() => {
  const EPOCH = 1767225600000, FRAME = 1000 / 60, MOST = 20000;
  const channel = new MessageChannel(), realFetch = window.fetch.bind(window), RealDate = Date;
  let now = 0, last = 0, fetching = 0, state = 0x9e3779b9;
  const queue = new Map();

  const chance = () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  Math.random = chance;
  Crypto.prototype.getRandomValues = (array) => {
    const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    for (let i = 0; i < bytes.length; i++) bytes[i] = chance() * 256;
    return array;
  };
  Crypto.prototype.randomUUID = () => "10000000-1000-4000-8000-100000000000".replace(/[018]/g, () => ((chance() * 16) | 0).toString(16));

  const today = () => EPOCH + Math.floor(now);
  window.Date = new Proxy(RealDate, {
    construct: (target, args, made) => Reflect.construct(target, args.length ? args : [today()], made === window.Date ? target : made),
    apply: () => new RealDate(today()).toString(),
    get: (target, key) => (key === "now" ? today : Reflect.get(target, key)),
  });
  RealDate.prototype.constructor = window.Date;
  Performance.prototype.now = () => now;

  const later = (wait, call, every) => {
    queue.set(++last, { at: now + Math.max(Number(wait) || 0, 1), call, every });
    return last;
  };
  const caller = (f, args) => (typeof f === "function" ? () => f(...args) : () => (0, eval)(String(f)));
  const forget = (id) => { queue.delete(Number(id)); };
  window.setTimeout = (f, wait, ...args) => later(wait, caller(f, args));
  window.setInterval = (f, wait, ...args) => later(wait, caller(f, args), Math.max(Number(wait) || 0, 1));
  window.requestAnimationFrame = (f) => later((Math.floor(now / FRAME + 0.001) + 1) * FRAME - now, () => f(now));
  window.requestIdleCallback = (f) => later(1, () => f({ didTimeout: false, timeRemaining: () => 10 }));
  window.clearTimeout = window.clearInterval = window.cancelAnimationFrame = window.cancelIdleCallback = forget;
  window.fetch = (...args) => {
    fetching++;
    return realFetch(...args).finally(() => { fetching--; });
  };

  // Nothing of a page's chatter crosses to the host; storage of an earlier page in this tab is not seen.
  for (const name of Object.keys(console)) if (typeof console[name] === "function") console[name] = () => {};
  try { if (window === top) { window.name = ""; sessionStorage.clear(); } } catch {}
  delete window.FontFace;

  const breath = () => new Promise((done) => { channel.port1.onmessage = done; channel.port2.postMessage(0); }); // one task
  const run = async (until) => {
    for (let calls = 0; calls < MOST; calls++) {
      await breath();
      while (fetching) await breath();
      let next = null;
      for (const [id, timer] of queue) if (timer.at <= until && (!next || timer.at < next.timer.at)) next = { id, timer };
      if (!next) break;
      now = Math.max(now, next.timer.at);
      if (next.timer.every === undefined) queue.delete(next.id);
      else next.timer.at = now + next.timer.every;
      try { next.timer.call(); } catch {}
    }
    now = until;
  };
  Object.defineProperty(window, "__gymsmith_run", { value: run });
})();
