// Begins before any script of the page: counts what the page has started and not ended, so that nobody need guess when it is done.
(() => {
  if (window.__relgrad?.watching) return;
  const seen = (window.__relgrad ||= {});
  Object.assign(seen, {watching: true, invalid: 0, sent: 0, timers: 0, calls: 0});
  const SOON = 2000;
  addEventListener('invalid', event => {
    const field = event.target;
    seen.invalid++;
    seen.wrong = [...(seen.wrong || []), (field.labels?.[0]?.textContent || field.name || field.id || field.type).trim().replace(/\s+/g, ' ')];
  }, true);
  addEventListener('submit', event => setTimeout0(() => { if (!event.defaultPrevented) seen.sent++; }));
  const later = window.setTimeout, never = window.clearTimeout, waiting = new Set();
  const setTimeout0 = work => later.call(window, work, 0);
  const ended = id => { if (waiting.delete(id)) seen.timers = waiting.size; };
  window.setTimeout = function (work, delay = 0, ...rest) {
    if (typeof work !== 'function' || delay > SOON) return later.call(window, work, delay, ...rest);
    const id = later.call(window, (...given) => { try { work.apply(window, given); } finally { ended(id); } }, delay, ...rest);
    waiting.add(id);
    seen.timers = waiting.size;
    return id;
  };
  seen.later = work => later.call(window, work, 0);
  const call = window.fetch, send = XMLHttpRequest.prototype.send, submit = HTMLFormElement.prototype.submit;
  window.fetch = function (...given) {
    seen.calls++;
    const answer = call.apply(window, given);
    answer.catch(() => {}).finally(() => { seen.calls--; });
    return answer;
  };
  XMLHttpRequest.prototype.send = function (...given) {
    seen.calls++;
    this.addEventListener('loadend', () => { seen.calls--; });
    return send.apply(this, given);
  };
  HTMLFormElement.prototype.submit = function () { seen.sent++; return submit.call(this); };
  window.clearTimeout = id => { ended(id); never.call(window, id); };
})();
