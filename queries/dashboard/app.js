/* The live page: follows one view, adds its rows up by minute, and shows what was corrected.
 *
 * What is hard about it
 *   - Figures may be shown only at a whole epoch. Differences of one epoch can come in pieces, and
 *     between −old and +new a sum is wrong. `Book` therefore collects them and shows nothing until
 *     `progress` says that the epoch is complete; a connection that breaks before that is rolled
 *     back and resumes from the last whole epoch (`Last-Event-ID`), so nothing is lost or doubled.
 *   - Whole numbers beyond 2^53 must not be rounded in silence: `parseExact` keeps their digits and
 *     all sums are BigInt. Only the pixels of the chart are floating point.
 *   - The page must never look livelier than it is: freshness counts on between messages, silence
 *     is said to be silence, and every panel says how old it is when it stops being renewed.
 *
 * The stream is read with `fetch` and not with `EventSource`, which can send no `Authorization`
 * (a token in an address ends up in logs) and hides why it was refused.
 *
 * Everything that grows has a limit in `LIMITS`. Text from the server enters the page through
 * `textContent` only.
 */

/** Minutes older than `from` are not sent. It stays as it is for as long as a stream is resumed. */
const viewSince = (from) =>
  `/v1/views/region_minute/subscribe?filter=${encodeURIComponent(`from:${from}`)}`;
const STATUS = "/v1/status";
const TOP = "/v1/reports/top?metric=clicks&by=campaignId&window=15m&limit=10";

const SECOND_MS = 1000;
const MINUTE_MS = 60 * SECOND_MS;

const LIMITS = {
  /** Minutes that stay: three hours. */
  minutesKept: 180,
  /** Minutes that a snapshot may fill before the log time is known; the oldest go. */
  minutesHeldMax: 2000,
  /** Corrections that stay in the list; the oldest go. */
  correctionsKept: 100,
  /** Characters of one event of the stream; beyond it the connection is given up, and said so. */
  eventCharsMax: 64 * 1024 * 1024,
  /** Spellings of bucket starts that are remembered. */
  startsMax: 4096,
};

/** A minute is corrected if it changes this long after its end: what is merely on its way is not. */
const ENDED_GRACE_MS = 2 * SECOND_MS;
/** Changes of one minute within this time are one entry of the list. */
const COALESCE_MS = 6 * SECOND_MS;
/** Progress is promised every second. Silence for this long is shown … */
const STALLED_MS = 4 * SECOND_MS;
/** … and for this long ends the connection. */
const SILENCE_MS_MAX = 15 * SECOND_MS;
const REQUEST_MS_MAX = 10 * SECOND_MS;
const RETRY_MS_MIN = SECOND_MS;
const RETRY_MS_MAX = 15 * SECOND_MS;
/** Sleeps end early when the token changes or the page comes into view. */
const FOR_A_TOKEN_MS = 10 * MINUTE_MS;
const STATUS_EVERY_MS = 2 * SECOND_MS;
const TOP_EVERY_MS = 5 * SECOND_MS;
const TICK_MS = 250;
const RENDER_EVERY_MS = 250;
const ANNOUNCE_EVERY_MS = 20 * SECOND_MS;
/** Freshness up to the first is fine, up to the second slow, beyond it bad. */
const FRESH_MS = 5 * SECOND_MS;
const SLOW_MS = 30 * SECOND_MS;
/** A difference to the server's clock below this is within what a `Date` header can tell. */
const CLOCK_NOISE_MS = 1500;

const FIGURES = [
  "impressions",
  "clicks",
  "conversions",
  "invalidImpressions",
  "invalidClicks",
  "spendMicros",
];

// ---------------------------------------------------------------------------------------------
// Numbers and times, in and out

/** The server said something that this page cannot read. */
class ProtocolError extends Error {}

/** JSON whose whole numbers beyond 2^53 become text with all their digits. */
function parseExact(text) {
  if (!/\d{16}/.test(text)) return JSON.parse(text);
  const tokens = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
  const keepDigits = (token) =>
    /^-?\d{16,}$/.test(token) && !Number.isSafeInteger(Number(token)) ? `"${token}"` : token;
  return JSON.parse(text.replace(tokens, keepDigits));
}

/** A figure as BigInt. */
function whole(value, name) {
  if (Number.isSafeInteger(value)) return BigInt(value);
  if (typeof value === "string" && /^-?\d{16,20}$/.test(value)) return BigInt(value);
  throw new ProtocolError(`“${name}” is ${JSON.stringify(value)}, which is no whole number`);
}

function epochOf(value) {
  if (Number.isSafeInteger(value) && value >= 0) return value;
  throw new ProtocolError(`the epoch is ${JSON.stringify(value)}, which is no epoch`);
}

function timeMs(text) {
  const ms = typeof text === "string" ? Date.parse(text) : NaN;
  if (Number.isNaN(ms)) throw new ProtocolError(`${JSON.stringify(text)} is no time`);
  return ms;
}

const startsMs = new Map();

/** The same for bucket starts, of which there are few and which come often. */
function startMs(text) {
  let ms = startsMs.get(text);
  if (ms === undefined) {
    if (startsMs.size >= LIMITS.startsMax) startsMs.clear();
    ms = timeMs(text);
    startsMs.set(text, ms);
  }
  return ms;
}

const minuteOf = (ms) => Math.floor(ms / MINUTE_MS) * MINUTE_MS;

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const MINUS = "\u2212";

const count = (n) => grouped.format(n).replace("-", MINUS);
const signed = (text) => (text.startsWith(MINUS) ? text : `+${text}`);
const plural = (n, one) => `${count(n)} ${one}${n === 1n || n === 1 ? "" : "s"}`;

/** Micros as units of the currency. Rounded to cents, half away from zero, for reading only. */
function money(micros) {
  const cents = (micros < 0n ? -micros : micros) / 5_000n;
  const rounded = (cents + 1n) / 2n;
  const sign = micros < 0n && rounded > 0n ? MINUS : "";
  return `${sign}${count(rounded / 100n)}.${String(rounded % 100n).padStart(2, "0")}`;
}

/** Micros to the last digit: corrections may be smaller than a cent. */
function moneyExact(micros) {
  const size = micros < 0n ? -micros : micros;
  const rest = String(size % 1_000_000n)
    .padStart(6, "0")
    .replace(/0{1,4}$/, "");
  return `${micros < 0n ? MINUS : ""}${count(size / 1_000_000n)}.${rest}`;
}

function ratio(part, of) {
  return of === 0n ? null : Number(part) / Number(of);
}

const percent = (r) => (r === null ? "–" : `${(r * 100).toFixed(2)} %`);

function span(ms) {
  const s = Math.max(0, ms) / SECOND_MS;
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 120) return `${Math.floor(s)} s`;
  if (s < 7200) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

const clock = (ms) => new Date(ms).toISOString().slice(11, 16);
const clockSeconds = (ms) => new Date(ms).toISOString().slice(11, 19);

function bytes(n) {
  if (n < 1024) return `${n} B`;
  if (n < 1024 ** 2) return `${(n / 1024).toFixed(0)} KiB`;
  if (n < 1024 ** 3) return `${(n / 1024 ** 2).toFixed(1)} MiB`;
  return `${(n / 1024 ** 3).toFixed(1)} GiB`;
}

// ---------------------------------------------------------------------------------------------
// The sums by minute

function emptyMinute() {
  const minute = { rows: 0, state: "" };
  for (const name of FIGURES) minute[name] = 0n;
  return minute;
}

const EMPTY = Object.freeze(emptyMinute());

/** Minutes at the last whole epoch (`shown`) and on the way to the next one.
 *
 * A minute of `shown` is never written to: the first row that touches it copies it. So rolling
 * back is forgetting the copies, and whoever draws sees one epoch. */
class Book {
  /** `{epoch, logTimeMs, minutes}`, or null before the first whole epoch. */
  shown = null;
  #live = new Map();
  #touched = new Set();
  #inSnapshot = false;

  /** A snapshot begins; what was is replaced when it is complete. */
  begin() {
    this.#live = new Map();
    this.#touched = new Set();
    this.#inSnapshot = true;
  }

  /** The connection broke: back to the last whole epoch. */
  rollBack() {
    this.#live = new Map(this.shown?.minutes);
    this.#touched = new Set();
    this.#inSnapshot = false;
  }

  /** Starts anew, as if nothing had been seen. */
  clear() {
    this.shown = null;
    this.rollBack();
  }

  /** Whether differences have something to stand on. */
  get hasBase() {
    return this.shown !== null || this.#inSnapshot;
  }

  add(row, diff) {
    if (!Number.isSafeInteger(diff)) throw new ProtocolError(`a diff is ${JSON.stringify(diff)}`);
    const start = startMs(row.bucketStart);
    if (this.shown && start < this.#floorMs(this.shown.logTimeMs)) return;
    let minute = this.#live.get(start);
    if (!this.#touched.has(start)) {
      minute = minute ? { ...minute } : emptyMinute();
      this.#live.set(start, minute);
      this.#touched.add(start);
      if (this.#live.size > LIMITS.minutesHeldMax) this.#dropOldest();
    }
    minute ??= EMPTY;
    minute.rows += diff;
    const times = BigInt(diff);
    for (const name of FIGURES) minute[name] += times * whole(row[name], name);
    if (diff > 0) minute.state = String(row.state);
  }

  /** The epoch is complete. Returns the minutes that changed after they had ended. */
  commit(epoch, logTimeMs) {
    const before = this.#inSnapshot ? null : this.shown;
    const corrections = [];
    for (const start of this.#touched) {
      const minute = this.#live.get(start);
      if (!minute) continue;
      this.#check(start, minute);
      const ended = before && start + MINUTE_MS + ENDED_GRACE_MS <= before.logTimeMs;
      if (ended) {
        const old = before.minutes.get(start) ?? EMPTY;
        if (FIGURES.some((name) => old[name] !== minute[name])) {
          corrections.push({ start, before: old, after: { ...minute } });
        }
      }
      if (minute.rows === 0) this.#live.delete(start);
    }
    const floor = this.#floorMs(logTimeMs);
    for (const start of this.#live.keys()) if (start < floor) this.#live.delete(start);
    this.shown = { epoch, logTimeMs, minutes: new Map(this.#live) };
    this.#touched.clear();
    this.#inSnapshot = false;
    return corrections.sort((a, b) => a.start - b.start);
  }

  /** Snapshot and differences must add up: no rows, no figures. */
  #check(start, minute) {
    const left = FIGURES.find((name) => minute[name] !== 0n);
    if (minute.rows < 0 || (minute.rows === 0 && left)) {
      throw new ProtocolError(
        `the rows of ${clock(start)} do not add up: ${minute.rows} rows, ${left ?? "nothing"} left`,
      );
    }
  }

  #floorMs(logTimeMs) {
    return minuteOf(logTimeMs) - (LIMITS.minutesKept - 1) * MINUTE_MS;
  }

  #dropOldest() {
    const oldest = Math.min(...this.#live.keys());
    this.#live.delete(oldest);
  }
}

/** The figures of `[from, to)`, added up. */
function sumOf(minutes, from, to) {
  const sum = emptyMinute();
  for (const [start, minute] of minutes) {
    if (start < from || start >= to) continue;
    for (const name of FIGURES) sum[name] += minute[name];
  }
  return sum;
}

// ---------------------------------------------------------------------------------------------
// What was corrected

const GLYPHS = { late: "+", out: MINUS, back: "\u21ba", mixed: "\u00b1" };
const WORDS = { late: "late events", out: "taken out", back: "put back", mixed: "mixed" };

/** Why a minute changed, as far as its figures tell. */
function kindOf(before, after) {
  const change = (names) => names.reduce((sum, name) => sum + after[name] - before[name], 0n);
  const valid = change(["impressions", "clicks", "conversions"]);
  const invalid = change(["invalidImpressions", "invalidClicks"]);
  if (valid < 0n && invalid >= 0n) return "out";
  if (valid > 0n && invalid < 0n) return "back";
  if (valid >= 0n && invalid >= 0n) return "late";
  return "mixed";
}

/** What a change of a figure is measured by. */
const MEASURES = {
  clicks: "clicks",
  invalidClicks: "clicks",
  impressions: "impressions",
  invalidImpressions: "impressions",
  spendMicros: "spendMicros",
};

/** Whether a change is at least 0.5 % of the busiest minute. */
function isLarge(before, after, busiest) {
  return Object.entries(MEASURES).some(([name, measure]) => {
    const by = after[name] - before[name];
    return by !== 0n && (by < 0n ? -by : by) * 200n >= busiest[measure];
  });
}

/** The greatest of each figure in `[from, to)`. */
function busiestOf(minutes, from, to) {
  const most = emptyMinute();
  for (const [start, minute] of minutes) {
    if (start < from || start >= to) continue;
    for (const name of FIGURES) if (minute[name] > most[name]) most[name] = minute[name];
  }
  return most;
}

/** The newest corrections, and for each minute what it was when it ended.
 *
 * Stragglers come all the time, one here and one there; a list of them all would push a verdict on
 * ten thousand clicks out within seconds. So the large ones have a list of their own. */
class Corrections {
  /** Newest first: `{start, before, after, isLarge, firstMs, lastMs}`. */
  recent = [];
  /** The large ones of them, and of those that `recent` has no more room for. */
  large = [];
  /** By minute: `{ended, changes, largeMs}`, where `ended` are the figures before the first. */
  marks = new Map();
  total = 0;
  sinceMs = Date.now();

  clear() {
    this.recent = [];
    this.large = [];
    this.marks.clear();
    this.total = 0;
    this.sinceMs = Date.now();
  }

  add({ start, before, after }, busiest, nowMs) {
    this.total += 1;
    let entry = this.recent.find((c) => c.start === start && nowMs - c.firstMs < COALESCE_MS);
    if (entry) {
      Object.assign(entry, { after, lastMs: nowMs });
    } else {
      entry = { start, before, after, isLarge: false, firstMs: nowMs, lastMs: nowMs };
      keepNewest(this.recent, entry);
    }
    if (!entry.isLarge && isLarge(entry.before, entry.after, busiest)) {
      entry.isLarge = true;
      keepNewest(this.large, entry);
    }
    const mark = this.marks.get(start) ?? { ended: before, changes: 0, largeMs: 0 };
    mark.changes += 1;
    if (entry.isLarge) mark.largeMs = nowMs;
    this.marks.set(start, mark);
  }

  forgetBefore(floorMs) {
    for (const start of this.marks.keys()) if (start < floorMs) this.marks.delete(start);
  }
}

function keepNewest(list, entry) {
  list.unshift(entry);
  list.length = Math.min(list.length, LIMITS.correctionsKept);
}

// ---------------------------------------------------------------------------------------------
// Talking to the server

const TOKEN_KEY = "trueup.token";

/** The token, for as long as the tab lives. Without storage, for as long as the page does. */
const token = {
  value: "",
  load() {
    try {
      this.value = sessionStorage.getItem(TOKEN_KEY) ?? "";
    } catch (error) {
      console.info("no session storage, the token is kept in memory only:", error.message);
    }
  },
  set(value) {
    this.value = value;
    try {
      if (value) sessionStorage.setItem(TOKEN_KEY, value);
      else sessionStorage.removeItem(TOKEN_KEY);
    } catch (error) {
      console.info("no session storage, the token is kept in memory only:", error.message);
    }
  },
  get headers() {
    return this.value ? { Authorization: `Bearer ${this.value}` } : {};
  },
};

/** The server's clock, by the `Date` of its answers; µs do not matter, a wrong clock does. */
const serverClock = {
  aheadMs: 0,
  learn(response, sentMs) {
    const dateMs = Date.parse(response.headers.get("date") ?? "");
    if (Number.isNaN(dateMs)) return;
    const aheadMs = dateMs + SECOND_MS / 2 - (sentMs + Date.now()) / 2;
    this.aheadMs = Math.abs(aheadMs) < CLOCK_NOISE_MS ? 0 : aheadMs;
  },
  now() {
    return Date.now() + this.aheadMs;
  },
};

/** An answer that is no success, with what the server said about it. */
class Refusal extends Error {
  constructor(status, detail, hint, retryMs) {
    super(hint ? `${detail}: ${hint}` : detail);
    Object.assign(this, { status, retryMs });
  }
}

async function refusalOf(response) {
  const retryS = Number(response.headers.get("retry-after"));
  const retryMs = Number.isFinite(retryS) && retryS > 0 ? retryS * SECOND_MS : null;
  let problem = {};
  try {
    problem = JSON.parse(await response.text());
  } catch {
    // Not every proxy on the way speaks problem+json; the status says enough.
  }
  const detail = problem.detail ?? `the server answered ${response.status}`;
  return new Refusal(
    response.status,
    String(detail),
    problem.hint && String(problem.hint),
    retryMs,
  );
}

const wakeUps = new Set();

/** Sleeps, or less when the token changes. */
function sleep(ms) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      wakeUps.delete(done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    wakeUps.add(done);
  });
}

function wakeAll() {
  for (const wake of [...wakeUps]) wake();
}

async function getJson(path) {
  const sentMs = Date.now();
  const response = await fetch(path, {
    headers: { Accept: "application/json", ...token.headers },
    cache: "no-store",
    signal: AbortSignal.timeout(REQUEST_MS_MAX),
  });
  serverClock.learn(response, sentMs);
  if (!response.ok) throw await refusalOf(response);
  return parseExact(await response.text());
}

/** The events of a Server-Sent Events body. `heard` is called whenever bytes come. */
async function* eventsOf(body, heard) {
  const reader = body.getReader();
  const text = new TextDecoder();
  let rest = [];
  let event = { name: "message", data: [], chars: 0 };
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    const lines = text.decode(value, { stream: true }).split("\n");
    for (let i = 0; i < lines.length; i += 1) {
      event.chars += lines[i].length;
      if (event.chars > LIMITS.eventCharsMax) {
        throw new ProtocolError(`an event has more than ${LIMITS.eventCharsMax} characters`);
      }
      rest.push(lines[i]);
      if (i === lines.length - 1) break;
      const line = rest.join("").replace(/\r$/, "");
      rest = [];
      if (line === "") {
        if (event.data.length > 0) yield { name: event.name, data: event.data.join("\n") };
        event = { name: "message", data: [], chars: 0 };
        continue;
      }
      const [, field, content] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (field === "event") event.name = content;
      if (field === "data") event.data.push(content);
    }
  }
}

// ---------------------------------------------------------------------------------------------
// Following the view

/** Where the connection stands, for the page to show. */
const line = {
  level: "wait",
  text: "Connecting",
  open: false,
  live: false,
  heardMs: 0,
  retryAtMs: 0,
};

const book = new Book();
const corrections = new Corrections();
let connection = null;

/** Takes an event of the stream; what cannot be read is said to be that, not a lost connection. */
function takeEvent(name, data, session) {
  try {
    applyEvent(name, data, session);
  } catch (error) {
    if (error instanceof ProtocolError || error instanceof Refusal) throw error;
    throw new ProtocolError(`an event “${name}” cannot be read: ${error.message}`);
  }
}

function applyEvent(name, data, session) {
  if (name === "snapshot") {
    const { rows } = parseExact(data);
    if (!session.inSnapshot) {
      book.begin();
      session.inSnapshot = true;
    }
    for (const row of rows) book.add(row, 1);
    session.rows += rows.length;
    line.text = `Loading: ${plural(session.rows, "row")}`;
  } else if (name === "diff") {
    if (!book.hasBase) throw new ProtocolError("a diff came before any snapshot");
    for (const { row, diff } of parseExact(data).updates) book.add(row, diff);
  } else if (name === "progress") {
    takeProgress(parseExact(data), session);
  } else if (name === "error") {
    const problem = JSON.parse(data);
    throw new Refusal(problem.status ?? 0, String(problem.detail ?? data), problem.hint, null);
  }
}

function takeProgress({ epoch, logTime }, session) {
  // A view without rows has no snapshot events; its progress still says that it is complete.
  if (!book.hasBase) book.begin();
  const anew = session.inSnapshot || book.shown === null;
  const corrected = book.commit(epochOf(epoch), timeMs(logTime));
  if (anew) corrections.clear();
  const { minutes, logTimeMs } = book.shown;
  const busiest = busiestOf(minutes, logTimeMs - 60 * MINUTE_MS, logTimeMs);
  for (const correction of corrected) corrections.add(correction, busiest, Date.now());
  corrections.forgetBefore(logTimeMs - LIMITS.minutesKept * MINUTE_MS);
  session.inSnapshot = false;
  session.failures = 0;
  Object.assign(line, { live: true, level: "good", text: "Live" });
  page.dirty = true;
}

/** Where a snapshot begins, by the server's clock: this device's may be hours off. */
async function firstMinute(signal) {
  const sentMs = Date.now();
  serverClock.learn(await fetch("/healthz", { cache: "no-store", signal }), sentMs);
  const from = minuteOf(serverClock.now()) - (LIMITS.minutesKept - 1) * MINUTE_MS;
  return new Date(from).toISOString();
}

/** One connection, until it ends; how it ended is thrown. */
async function followOnce(session) {
  connection = new AbortController();
  const resume = book.shown ? { "Last-Event-ID": String(book.shown.epoch) } : {};
  Object.assign(session, { inSnapshot: false, rows: 0 });
  Object.assign(line, { open: true, heardMs: Date.now() });
  if (!book.shown) session.from = await firstMinute(connection.signal);
  line.heardMs = Date.now();
  const response = await fetch(viewSince(session.from), {
    headers: { Accept: "text/event-stream", ...resume, ...token.headers },
    cache: "no-store",
    signal: connection.signal,
  });
  serverClock.learn(response, line.heardMs);
  if (!response.ok) throw await refusalOf(response);
  page.tokenAccepted();
  Object.assign(line, { level: "wait", text: "Loading" });
  const heard = () => {
    line.heardMs = Date.now();
  };
  for await (const { name, data } of eventsOf(response.body, heard)) takeEvent(name, data, session);
  throw new Refusal(0, "the server closed the stream", null, null);
}

async function follow() {
  const session = { failures: 0 };
  for (;;) {
    try {
      await followOnce(session);
    } catch (error) {
      connection.abort();
      book.rollBack();
      Object.assign(line, { open: false, live: false });
      const retryMs = afterFailure(error, session);
      line.retryAtMs = Date.now() + retryMs;
      await sleep(retryMs);
    }
  }
}

/** Says what went wrong; returns how long to wait. */
function afterFailure(error, session) {
  session.failures += 1;
  const backoffMs = Math.min(RETRY_MS_MIN * 2 ** (session.failures - 1), RETRY_MS_MAX);
  if (error instanceof ProtocolError) {
    console.error(error);
    book.clear();
    Object.assign(line, { level: "bad", text: "Not understood" });
    page.notice(`${error.message}. The page starts again from a snapshot.`);
    return backoffMs;
  }
  if (!(error instanceof Refusal)) {
    Object.assign(line, { level: "bad", text: "Disconnected" });
    return backoffMs;
  }
  const { status } = error;
  if (status === 401) return waitForToken(error);
  // Gone, or an epoch that this log has not reached: what we hold is of no use there.
  if (book.shown && (status === 410 || status === 400 || status === 409)) {
    book.clear();
    Object.assign(line, { level: "wait", text: "Starting anew" });
    return session.failures > 1 ? backoffMs : 0;
  }
  const refused = status >= 400 && status < 500 && status !== 429;
  Object.assign(line, { level: "bad", text: refused ? "Refused" : "Disconnected" });
  if (status !== 0) page.notice(error.message);
  return error.retryMs ?? (refused ? RETRY_MS_MAX : backoffMs);
}

function waitForToken(error) {
  Object.assign(line, { level: "bad", text: "Token needed" });
  page.askForToken(token.value ? error.message : "");
  return FOR_A_TOKEN_MS;
}

/** Gives up a connection that has gone silent. */
function watchSilence(nowMs) {
  if (line.open && nowMs - line.heardMs > SILENCE_MS_MAX) connection.abort();
}

/** How long a panel waits: without a right there is nothing to ask for until the token changes. */
function waitAfter({ status }) {
  if (status === 401 || status === 403) return FOR_A_TOKEN_MS;
  return status === undefined ? 3 * RETRY_MS_MIN : RETRY_MS_MAX;
}

/** Asks again and again while the page is in view. */
async function poll(path, everyMs, panel) {
  for (;;) {
    let waitMs = everyMs;
    if (!document.hidden) {
      try {
        panel.take(await getJson(path));
      } catch (error) {
        panel.failed(error);
        waitMs = error.retryMs ?? waitAfter(error);
      }
    }
    await sleep(waitMs);
  }
}

// ---------------------------------------------------------------------------------------------
// The chart

const MARK_FRESH_MS = 4 * SECOND_MS;
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");

const byId = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Minutes without gaps: `[start, minute]`. A minute that has no rows is zero. */
function minutesOf(shown, minutesMax) {
  const last = minuteOf(shown.logTimeMs);
  const oldest = Math.min(last, ...shown.minutes.keys());
  const first = Math.max(
    last - (minutesMax - 1) * MINUTE_MS,
    Math.min(oldest, last - 14 * MINUTE_MS),
  );
  const minutes = [];
  for (let start = first; start <= last; start += MINUTE_MS) {
    minutes.push([start, shown.minutes.get(start) ?? EMPTY]);
  }
  return minutes;
}

/** The same from where traffic began: stragglers of an hour ago must not squeeze a log that is
 * five minutes old into a corner. What is left out is below a hundredth of the peak. */
function fromBeginning(minutes) {
  const most = minutes.reduce((max, [, m]) => (m.impressions > max ? m.impressions : max), 0n);
  const begun = minutes.findIndex(([, minute]) => minute.impressions * 100n >= most);
  return minutes.slice(Math.max(0, Math.min(begun - 1, minutes.length - 15)));
}

class Chart {
  #place;
  #plot = null;
  #minutes = [];
  #chosen = null;
  #keyed = false;

  constructor(place) {
    this.#place = place;
    new ResizeObserver(() => this.#plot?.setSize(this.#size())).observe(place);
    dark.addEventListener("change", () => this.#build());
    place.addEventListener("keydown", (event) => this.#key(event));
    place.addEventListener("focus", () => this.#speak(true));
    place.addEventListener("blur", () => this.#speak(false));
  }

  show(minutes) {
    this.#minutes = minutes;
    if (!this.#plot) this.#build();
    else this.#plot.setData(this.#data());
    if (this.#keyed) this.#moveTo(this.#chosen);
    this.#readOut();
  }

  /** Draws again while a fresh mark fades. */
  animate(nowMs) {
    if (calm.matches || page.paused || !this.#plot) return;
    for (const { largeMs } of corrections.marks.values()) {
      if (nowMs - largeMs < MARK_FRESH_MS + 2 * TICK_MS) return this.#plot.redraw(false, false);
    }
  }

  #size() {
    const width = Math.max(260, Math.floor(this.#place.clientWidth));
    return { width, height: width < 520 ? 220 : 300 };
  }

  /** x at the middle of the minute, so that bars stand between the ticks. */
  #data() {
    const open = (start) => start + MINUTE_MS > page.shown.logTimeMs;
    const column = (pick) => this.#minutes.map(([start, minute]) => pick(start, minute));
    const spend = (minute) => Number(minute.spendMicros) / 1e6;
    return [
      column((start) => (start + MINUTE_MS / 2) / SECOND_MS),
      column((start, minute) => (open(start) ? null : Number(minute.clicks))),
      column((start, minute) => (open(start) ? Number(minute.clicks) : null)),
      column((start, minute) => (open(start) ? null : spend(minute))),
      column((start, minute) => (open(start) ? spend(minute) : null)),
    ];
  }

  #build() {
    this.#plot?.destroy();
    this.#plot = null;
    if (this.#minutes.length === 0) return;
    const bars = uPlot.paths.bars({ size: [0.72, 26], radius: 0.15 });
    const clicks = css("--clicks");
    const open = css("--clicks-open");
    const spend = css("--spend");
    const hidden = { show: false };
    const options = {
      ...this.#size(),
      legend: hidden,
      padding: [18, 0, 0, 0],
      tzDate: (s) => uPlot.tzDate(new Date(s * SECOND_MS), "Etc/UTC"),
      cursor: { y: false, drag: { x: false, y: false }, points: hidden },
      scales: {
        x: { range: () => this.#range() },
        // Bars keep below the line, which mostly has their shape; both start at zero.
        clicks: { range: () => [0, Math.max(4, this.#mostClicks() * 1.55)] },
        spend: { range: (plot, min, max) => [0, Math.max(0.04, (max ?? 0) * 1.1)] },
      },
      axes: this.#axes(),
      series: [
        {},
        { scale: "clicks", paths: bars, fill: clicks, stroke: clicks, width: 0, points: hidden },
        { scale: "clicks", paths: bars, fill: open, stroke: open, width: 0, points: hidden },
        { scale: "spend", stroke: spend, width: 2, points: hidden },
        {
          scale: "spend",
          stroke: spend,
          paths: () => null,
          points: { show: true, size: 6, fill: spend },
        },
      ],
      hooks: {
        draw: [(plot) => this.#drawMarks(plot)],
        setCursor: [(plot) => this.#pointed(plot)],
      },
    };
    this.#plot = new uPlot(options, this.#data(), this.#place);
  }

  #axes() {
    const font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const common = { stroke: css("--muted"), font, ticks: { show: false } };
    const grid = { stroke: css("--grid"), width: 1 };
    return [
      {
        ...common,
        grid: { show: false },
        space: 64,
        size: 30,
        incrs: [60, 120, 300, 600, 900, 1200, 1800, 3600],
        values: (plot, ticks) => ticks.map((s) => clock(s * SECOND_MS)),
      },
      {
        ...common,
        scale: "clicks",
        grid,
        size: 56,
        incrs: [
          1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6, 1e7,
          1e8, 1e9,
        ],
        values: (plot, ticks) => ticks.map(short),
      },
      {
        ...common,
        scale: "spend",
        side: 1,
        grid: { show: false },
        size: 56,
        values: (plot, ticks) => ticks.map(short),
      },
    ];
  }

  /** What was taken out must still be seen. */
  #mostClicks() {
    const clicks = this.#minutes.map(([start, minute]) =>
      Math.max(Number(minute.clicks), Number(corrections.marks.get(start)?.ended.clicks ?? 0)),
    );
    return Math.max(0, ...clicks);
  }

  #range() {
    if (this.#minutes.length === 0) return [0, 60];
    return [this.#minutes[0][0] / SECOND_MS, (this.#minutes.at(-1)[0] + MINUTE_MS) / SECOND_MS];
  }

  /** For each corrected minute: a stroke where it stood when it ended, and a diamond above, which
   * is small as long as all its corrections were. */
  #drawMarks(plot) {
    const { ctx } = plot;
    const px = uPlot.pxRatio;
    const nowMs = Date.now();
    const halfMinute = (plot.valToPos(60, "x", true) - plot.valToPos(0, "x", true)) / 2;
    const half = Math.min(halfMinute * 0.8, 15 * px);
    ctx.save();
    ctx.strokeStyle = css("--mark");
    ctx.fillStyle = css("--mark");
    for (const [start, minute] of this.#minutes) {
      const mark = corrections.marks.get(start);
      if (!mark) continue;
      const x = plot.valToPos((start + MINUTE_MS / 2) / SECOND_MS, "x", true);
      const was = plot.valToPos(Number(mark.ended.clicks), "clicks", true);
      const is = plot.valToPos(Number(minute.clicks), "clicks", true);
      if (mark.ended.clicks !== minute.clicks) drawWas(ctx, x, was, is, half, px);
      const top = Math.min(was, is) - 9 * px;
      drawDiamond(ctx, x, top, Math.min(half, (mark.largeMs === 0 ? 1.8 : 4.5) * px));
      const age = (nowMs - mark.largeMs) / MARK_FRESH_MS;
      if (age < 1 && !calm.matches) drawRing(ctx, x, top, (5 + 9 * age) * px, 1 - age, px);
    }
    ctx.restore();
  }

  #pointed(plot) {
    if (this.#keyed) return;
    const { idx, left } = plot.cursor;
    this.#chosen = left >= 0 && idx != null ? (this.#minutes[idx]?.[0] ?? null) : null;
    this.#readOut();
  }

  #key(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e6, End: 1e6 };
    if (event.key === "Escape") {
      this.#keyed = false;
      this.#chosen = null;
      this.#plot?.setCursor({ left: -10, top: -10 });
      this.#readOut();
      return;
    }
    const step = steps[event.key];
    if (!step || this.#minutes.length === 0) return;
    event.preventDefault();
    const last = this.#minutes.length - 1;
    const from = this.#minutes.findIndex(([start]) => start === this.#chosen);
    const to = Math.min(last, Math.max(0, (from < 0 ? last : from) + step));
    this.#keyed = true;
    this.#moveTo(this.#minutes[to][0]);
    this.#readOut();
  }

  #moveTo(start) {
    const oldest = this.#minutes[0][0];
    this.#chosen = Math.max(start, oldest);
    const left = this.#plot.valToPos((this.#chosen + MINUTE_MS / 2) / SECOND_MS, "x");
    this.#plot.setCursor({ left, top: 10 });
  }

  /** Only whoever moves by keys wants each minute read out. */
  #speak(on) {
    if (!on) this.#keyed = false;
    byId("readout").setAttribute("aria-live", on ? "polite" : "off");
  }

  /** The chosen minute in words, or the newest that has ended. */
  #readOut() {
    const ended = this.#minutes.filter(([start]) => start + MINUTE_MS <= page.shown.logTimeMs);
    const found = this.#minutes.find(([start]) => start === this.#chosen) ?? ended.at(-1);
    if (found) setText(byId("readout"), inWords(...found));
  }
}

const shortNumber = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 });
const short = (n) => shortNumber.format(n);

function drawWas(ctx, x, was, is, half, px) {
  ctx.lineWidth = 1.5 * px;
  ctx.beginPath();
  ctx.moveTo(x, was);
  ctx.lineTo(x, is);
  ctx.moveTo(x - half, was);
  ctx.lineTo(x + half, was);
  ctx.stroke();
}

function drawDiamond(ctx, x, y, size) {
  ctx.beginPath();
  ctx.moveTo(x, y - size);
  ctx.lineTo(x + size, y);
  ctx.lineTo(x, y + size);
  ctx.lineTo(x - size, y);
  ctx.closePath();
  ctx.fill();
}

function drawRing(ctx, x, y, radius, alpha, px) {
  ctx.globalAlpha = alpha;
  ctx.lineWidth = 2 * px;
  ctx.beginPath();
  ctx.arc(x, y, radius, 0, 2 * Math.PI);
  ctx.stroke();
  ctx.globalAlpha = 1;
}

/** A minute in words. */
function inWords(start, minute) {
  const invalid = minute.invalidImpressions + minute.invalidClicks;
  const open = start + MINUTE_MS > page.shown.logTimeMs;
  const parts = [
    `${clock(start)}${open ? ", under way" : ""}`,
    plural(minute.clicks, "click"),
    `spend ${money(minute.spendMicros)}`,
    plural(minute.impressions, "impression"),
    plural(minute.conversions, "conversion"),
    `${count(invalid)} invalid`,
  ];
  if (minute.state) parts.push(minute.state);
  const mark = corrections.marks.get(start);
  if (mark) {
    const was = `${plural(mark.ended.clicks, "click")}, spend ${money(mark.ended.spendMicros)}`;
    parts.push(`${plural(mark.changes, "correction")}, ended with ${was}`);
  }
  return parts.join(" · ");
}

// ---------------------------------------------------------------------------------------------
// The page

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function setLevel(element, level) {
  if (element.dataset.level !== level) element.dataset.level = level;
}

/** An element with text. */
function made(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

const page = {
  dirty: false,
  paused: false,
  /** The epoch on the page: the newest, or where the page was paused. */
  shown: null,
  renderedMs: 0,
  announcedMs: 0,
  announcedTotal: 0,
  /** The 99th percentile of freshness, by the server’s own measure. */
  p99Ms: null,
  chart: null,
  nodes: new Map(),

  notice(text) {
    setText(byId("notice"), text);
    byId("notice").hidden = text === "";
  },

  askForToken(hint) {
    const form = byId("token-form");
    if (hint) setText(byId("token-hint"), hint);
    if (form.hidden) {
      form.hidden = false;
      byId("token").focus();
    }
  },

  tokenAccepted() {
    byId("token-form").hidden = true;
    byId("forget").hidden = token.value === "";
    this.notice("");
  },

  /** Everything that depends on the epoch. */
  render(nowMs) {
    this.dirty = false;
    this.renderedMs = nowMs;
    this.shown = book.shown;
    const { epoch } = this.shown;
    setText(byId("epoch"), count(epoch));
    this.renderTotals();
    this.renderSpan();
    this.renderCorrections();
  },

  /** What depends on the span that is chosen. */
  renderSpan() {
    this.renderChart();
    if (byId("minutes").open) this.renderMinutes();
  },

  renderTotals() {
    const { minutes, logTimeMs } = this.shown;
    const end = minuteOf(logTimeMs) + MINUTE_MS;
    const start = end - 60 * MINUTE_MS;
    const sum = sumOf(minutes, start, end);
    const oldest = Math.min(...minutes.keys());
    const before =
      oldest <= start - 60 * MINUTE_MS ? sumOf(minutes, start - 60 * MINUTE_MS, start) : null;
    setText(byId("totals-range"), `${clock(start)} to ${clockSeconds(logTimeMs)}`);
    const invalid = (minute) => minute.invalidImpressions + minute.invalidClicks;
    for (const name of ["impressions", "clicks", "conversions"]) {
      showTotal(name, count(sum[name]), before && change(sum[name], before[name]));
    }
    showTotal("invalid", count(invalid(sum)), before && change(invalid(sum), invalid(before)));
    showTotal(
      "spend",
      money(sum.spendMicros),
      before && change(sum.spendMicros, before.spendMicros),
    );
    const ctr = ratio(sum.clicks, sum.impressions);
    showTotal("ctr", percent(ctr), before && points(ctr, ratio(before.clicks, before.impressions)));
  },

  renderChart() {
    const wanted = Number(document.querySelector("input[name=span]:checked").value);
    this.chart.show(fromBeginning(minutesOf(this.shown, wanted)));
  },

  renderMinutes() {
    const wanted = Number(document.querySelector("input[name=span]:checked").value);
    const rows = minutesOf(this.shown, wanted)
      .reverse()
      .map(([start, minute]) => {
        const row = made("tr");
        const head = made("th", clock(start));
        head.scope = "row";
        const cells = [
          count(minute.impressions),
          count(minute.clicks),
          count(minute.conversions),
          count(minute.invalidImpressions + minute.invalidClicks),
          money(minute.spendMicros),
          minute.state || "–",
        ].map((text) => made("td", text));
        row.append(head, ...cells);
        return row;
      });
    byId("minutes-rows").replaceChildren(...rows);
  },

  renderCorrections() {
    const list = byId("corrections");
    const { recent, large, total, sinceMs } = corrections;
    const newest = byId("small").checked ? recent : large;
    setText(byId("corrections-count"), `${count(total)} since ${clockSeconds(sinceMs)}`);
    byId("corrections-empty").hidden = newest.length > 0;
    const alive = new Set(newest);
    for (const [correction, node] of this.nodes) {
      if (alive.has(correction)) continue;
      node.remove();
      this.nodes.delete(correction);
    }
    for (const correction of [...newest].reverse()) {
      let node = this.nodes.get(correction);
      if (!node) {
        node = correctionNode();
        this.nodes.set(correction, node);
        list.prepend(node);
      }
      showCorrection(node, correction);
    }
  },

  /** Says now and then what the list shows all the time. */
  announce(nowMs) {
    if (this.paused || nowMs - this.announcedMs < ANNOUNCE_EVERY_MS) return;
    const fresh = corrections.total - this.announcedTotal;
    this.announcedMs = nowMs;
    this.announcedTotal = corrections.total;
    if (fresh > 0) setText(byId("corrections-said"), `${plural(fresh, "correction")} arrived.`);
  },

  /** What changes with the clock alone. */
  tick() {
    const nowMs = Date.now();
    watchSilence(nowMs);
    this.renderLine(nowMs);
    this.renderFreshness();
    this.chart.animate(nowMs);
    this.announce(nowMs);
    for (const panel of [counts, top]) panel.age(nowMs);
    if (this.dirty && !this.paused && nowMs - this.renderedMs >= RENDER_EVERY_MS)
      this.render(nowMs);
  },

  renderLine(nowMs) {
    let { level, text } = line;
    const silentMs = nowMs - line.heardMs;
    if (line.open && silentMs > STALLED_MS) {
      level = "slow";
      text = `Stalled: silent for ${Math.floor(silentMs / SECOND_MS)} s`;
    } else if (line.live && this.paused) {
      level = "wait";
      text = "Paused";
    } else if (!line.live && line.text === "Disconnected") {
      const waitS = Math.ceil((line.retryAtMs - nowMs) / SECOND_MS);
      text = waitS > 0 ? `Disconnected, trying again in ${waitS} s` : "Disconnected, trying again";
    }
    setLevel(byId("connection"), level);
    setText(byId("connection-text"), text);
    const title = level === "good" ? "Trueup" : `${text.split(/[,:]/)[0]} · Trueup`;
    if (document.title !== title) document.title = title;
  },

  renderFreshness() {
    if (!this.shown) return;
    const { logTimeMs } = this.shown;
    const ageMs = Math.max(0, serverClock.now() - logTimeMs);
    setText(byId("freshness-value"), span(ageMs));
    const level = ageMs <= FRESH_MS ? "good" : ageMs <= SLOW_MS ? "slow" : "bad";
    setLevel(byId("freshness"), level);
    const until = `complete to ${clockSeconds(logTimeMs)}`;
    const why = { good: until, slow: `behind; ${until}`, bad: `far behind; ${until}` }[level];
    const p99 = this.p99Ms === null ? "" : `, p99 ${span(this.p99Ms)}`;
    setText(byId("freshness-note"), this.paused ? `paused; ${until}` : why + p99);
    setText(byId("epoch-note"), `log time ${new Date(logTimeMs).toISOString().slice(11, 23)}`);
    const aheadMs = serverClock.aheadMs;
    const side = aheadMs < 0 ? "ahead of" : "behind";
    const other = `This device’s clock is ${span(Math.abs(aheadMs))} ${side} the server’s; `;
    setText(byId("clock-note"), aheadMs === 0 ? "" : `${other}ages are corrected for it.`);
  },
};

function showTotal(name, text, trend) {
  setText(document.querySelector(`[data-total=${name}]`), text);
  setText(document.querySelector(`[data-trend=${name}]`), trend ?? "");
}

/** The change to the hour before. */
function change(now, before) {
  if (before === 0n) return now === 0n ? "as in the hour before" : "none in the hour before";
  if (now > before * 10n) return "little in the hour before";
  const r = (Number(now - before) / Number(before)) * 100;
  return `${signed(r.toFixed(1).replace("-", MINUS))} % on the hour before`;
}

function points(now, before) {
  if (now === null || before === null) return "";
  return `${signed(((now - before) * 100).toFixed(2).replace("-", MINUS))} points`;
}

function correctionNode() {
  const node = made("li");
  const glyph = made("span", "", "glyph");
  glyph.setAttribute("aria-hidden", "true");
  node.append(
    glyph,
    made("span", "", "bucket"),
    made("span", "", "kind"),
    made("time", "", "note"),
    made("span", "", "deltas"),
    made("span", "", "was"),
  );
  return node;
}

const DELTAS = [
  ["clicks", "click"],
  ["impressions", "impression"],
  ["conversions", "conversion"],
  ["invalidClicks", "invalid click"],
  ["invalidImpressions", "invalid impression"],
];

function showCorrection(node, { start, before, after, firstMs, lastMs }) {
  const kind = kindOf(before, after);
  if (node.dataset.lastMs === String(lastMs)) return;
  Object.assign(node.dataset, { kind, lastMs });
  const deltas = DELTAS.filter(([name]) => after[name] !== before[name]).map(([name, one]) => {
    const by = after[name] - before[name];
    return `${signed(count(by))} ${one}${by === 1n || by === -1n ? "" : "s"}`;
  });
  const spend = after.spendMicros - before.spendMicros;
  if (spend !== 0n) deltas.push(`${signed(moneyExact(spend))} spend`);
  const was = [];
  if (after.clicks !== before.clicks)
    was.push(`clicks ${count(before.clicks)} → ${count(after.clicks)}`);
  if (spend !== 0n)
    was.push(`spend ${moneyExact(before.spendMicros)} → ${moneyExact(after.spendMicros)}`);
  const texts = [
    GLYPHS[kind],
    clock(start),
    WORDS[kind],
    clockSeconds(firstMs),
    deltas.join(" · ") || "changed and changed back",
    was.join(" · "),
  ];
  texts.forEach((text, i) => setText(node.children[i], text));
}

// ---------------------------------------------------------------------------------------------
// The panels that are asked for now and then

/** What all such panels share: how old they are, and why they are not newer. */
class Panel {
  #problem;
  #age;
  #table;
  #atMs = 0;

  constructor(name) {
    this.#problem = byId(`${name}-problem`);
    this.#age = byId(`${name}-age`);
    this.#table = byId(name);
  }

  /** Shows an answer, unless the page is paused. */
  take(answer) {
    if (!page.paused) {
      try {
        this.show(answer);
      } catch (error) {
        throw new ProtocolError(`The answer cannot be read: ${error.message}`);
      }
    }
    this.#atMs = Date.now();
    this.#problem.hidden = true;
    this.#table.hidden = false;
  }

  failed(error) {
    if (error.status === 401) page.askForToken("");
    const said = error instanceof Refusal || error instanceof ProtocolError;
    const text = said ? error.message : "The server does not answer.";
    setText(this.#problem, error.status === 401 ? "Waiting for a token." : text);
    this.#problem.hidden = false;
    this.#table.hidden = this.#atMs === 0;
  }

  /** Says the age once it is worth saying. */
  age(nowMs) {
    const ageMs = nowMs - this.#atMs;
    const old = this.#atMs !== 0 && ageMs > 3 * TOP_EVERY_MS;
    setText(this.#age, old ? `as of ${span(ageMs)} ago` : "");
  }
}

const PARTS = ["counted", "duplicate", "conflict", "quarantined", "tooLate", "pending"];

class Counts extends Panel {
  show(status) {
    this.#lags(status);
    const of = {};
    for (const name of ["received", "accepted", "rejected", ...PARTS]) {
      of[name] = whole(status.counts?.[name] ?? 0, name);
      setText(document.querySelector(`[data-count=${name}]`), count(of[name]));
    }
    for (const name of ["rejected", ...PARTS]) {
      const share = ratio(of[name], of.received) ?? 0;
      document.querySelector(`[data-bar=${name}]`).style.width = `${(share * 100).toFixed(2)}%`;
    }
    this.#balance(of);
  }

  failed(error) {
    super.failed(error);
    for (const name of ["log-lag", "view-lag"]) {
      setText(byId(name), "–");
      const mayNot = error.status === 401 || error.status === 403;
      setText(byId(`${name}-note`), mayNot ? "needs an operator’s token" : "no answer");
    }
  }

  /** Nothing is silent: the counts must add up, and the page says whether they do. */
  #balance(of) {
    const ends = PARTS.reduce((sum, name) => sum + of[name], 0n);
    const lost = [of.received - of.accepted - of.rejected, of.accepted - ends];
    const balanced = lost.every((n) => n === 0n);
    setLevel(byId("counts-balance"), balanced ? "good" : "bad");
    setText(
      byId("counts-balance"),
      balanced
        ? "Adds up: every event that was received is in exactly one of these."
        : `Does not add up: received is off by ${count(lost[0])}, accepted by ${count(lost[1])}.`,
    );
  }

  /** How far the slowest partition is behind the clock, and the views behind it. */
  #lags({ partitions, logTime, lag, freshness, caughtUp, fault }) {
    const log = Math.min(...partitions.map(({ completeTo }) => timeMs(completeTo)));
    setText(byId("log-lag"), span(serverClock.now() - log));
    setText(byId("log-lag-note"), `the slowest of ${plural(partitions.length, "partition")}`);
    setText(byId("view-lag"), logTime === null ? "–" : span(log - timeMs(logTime)));
    const behind = `${plural(lag.epochs, "epoch")}, ${bytes(Number(lag.bytes))}`;
    setText(byId("view-lag-note"), caughtUp ? behind : `catching up: ${behind}`);
    page.p99Ms = freshness.samples > 0 ? freshness.p99Seconds * SECOND_MS : null;
    if (fault) page.notice(`The dataflow has stopped: ${fault}`);
  }
}

class Top extends Panel {
  show({ rows }) {
    const first = rows.length > 0 ? Number(rows[0].clicks) : 0;
    byId("top-rows").replaceChildren(...rows.map((row) => this.#row(row, first)));
  }

  #row(row, first) {
    const clicks = whole(row.clicks, "clicks");
    const head = made("th", row.campaignId || "(none)");
    head.scope = "row";
    const share = made("td", undefined, "share");
    const bar = made("span", undefined, "bar");
    bar.style.width = `${first > 0 ? ((Number(clicks) / first) * 100).toFixed(1) : 0}%`;
    share.append(bar);
    const spend =
      row.spendMicros === undefined ? "–" : money(whole(row.spendMicros, "spendMicros"));
    const ctr = percent(typeof row.ctr === "number" ? row.ctr : null);
    const line = made("tr");
    line.append(head, made("td", count(clicks)), share, made("td", spend), made("td", ctr));
    return line;
  }
}

// ---------------------------------------------------------------------------------------------
// Start

let counts;
let top;

function listen() {
  byId("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    token.set(byId("token").value.trim());
    byId("token").value = "";
    connection?.abort();
    wakeAll();
  });
  byId("forget").addEventListener("click", () => {
    token.set("");
    location.reload();
  });
  byId("pause").addEventListener("click", () => {
    page.paused = !page.paused;
    byId("pause").setAttribute("aria-pressed", String(page.paused));
    setText(byId("pause"), page.paused ? "Go on" : "Pause");
    page.dirty = book.shown !== null;
  });
  for (const radio of document.querySelectorAll("input[name=span]")) {
    radio.addEventListener("change", () => page.shown && page.renderSpan());
  }
  byId("small").addEventListener("change", () => page.shown && page.renderCorrections());
  byId("minutes").addEventListener("toggle", () => page.shown && page.renderMinutes());
  document.addEventListener("visibilitychange", () => !document.hidden && wakeAll());
}

function start() {
  token.load();
  counts = new Counts("counts");
  top = new Top("top");
  page.chart = new Chart(byId("chart"));
  listen();
  setInterval(() => page.tick(), TICK_MS);
  follow();
  poll(STATUS, STATUS_EVERY_MS, counts);
  poll(TOP, TOP_EVERY_MS, top);
}

start();
