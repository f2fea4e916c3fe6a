// The live picture of the engine, drawn from /engine/events while the panel is seen.
import { events } from "./chat.js";

const $ = (id) => document.getElementById(id);
const PHASES = {
  embedding: "embedding", attention: "attention", delta_net: "delta net", router: "router", shared_expert: "shared expert",
  drive_wait: "drive wait", experts: "experts", head: "head", other: "other",
};
// Sums of the last seconds give the figures; older ones are forgotten.
const WINDOW_MS = 2000;
const FADE_MS = 1200;
const SPARK_MS = 60000;
const MAP_HEIGHT = 440;

export function watch(headers, introduce) {
  let abort = null, isWanted = false, about = null, last = null, cells = null;
  const history = [];
  const speeds = [];

  async function run() {
    if (abort || !isWanted || document.hidden) return;
    const mine = abort = new AbortController();
    let wait = 1000;
    while (!mine.signal.aborted) {
      try {
        const response = await fetch("/engine/events", { headers: headers(), signal: mine.signal });
        if (!response.ok) throw new Error(String(response.status));
        wait = 1000;
        for await (const [name, data] of events(response)) {
          if (name === "engine") begin(JSON.parse(data));
          if (name === "state") state(JSON.parse(data));
        }
      } catch { /* Gone, or not allowed yet; tried again below. */ }
      if (mine.signal.aborted) return;
      $("requests").textContent = "\u2013";
      $("waiting").textContent = "not connected";
      await new Promise((resolve) => setTimeout(resolve, wait));
      wait = Math.min(wait * 2, 15000);
    }
  }

  function halt() {
    abort?.abort();
    abort = null;
  }

  function begin(told) {
    about = told;
    last = null;
    cells = told.experts_per_layer.map((n) => new Float64Array(n));
    introduce(told);
    const gb = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${(bytes / 1e6).toFixed(0)} MB`);
    $("about").textContent = `${told.device}. ${told.lossy ? `Lossy: ${told.lossy}. ` : ""}Memory ${gb(told.memory_bytes)}; ${gb(told.expert_slot_bytes)} of ${gb(told.expert_bytes)} of experts fit. Context ${told.context.toLocaleString("en")} tokens.`;
    $("map-text").textContent = `${told.experts_per_layer.length} layers from top to bottom, ${told.experts_per_layer[0]} experts in each; a token uses ${told.experts_per_token} of them.`;
  }

  function state(now) {
    const time = performance.now();
    now.time = time;
    // What was done before a rest says nothing about the speed after it.
    const previous = history.at(-1);
    if (previous && !previous.running && now.running) history.splice(0, history.length, { ...previous, time: Math.max(previous.time, time - 100) });
    history.push(now);
    while (history.length > 2 && history[1].time < time - WINDOW_MS) history.shift();
    const before = history[0];
    const more = (name) => now[name] - before[name];
    $("requests").textContent = now.running;
    $("waiting").textContent = now.waiting ? `running, ${now.waiting} waiting` : "running";
    const generated = more("tokens_generated"), seconds = (time - before.time) / 1000;
    const speed = now.running && seconds > 0.15 ? generated / seconds : 0;
    speeds.push([time, speed]);
    while (speeds.length && speeds[0][0] < time - SPARK_MS) speeds.shift();
    if (speed) $("speed").textContent = speed.toFixed(speed < 10 ? 2 : 1);
    const asked = more("expert_hits") + more("expert_misses");
    if (asked) $("hits").textContent = `${(100 * more("expert_hits") / asked).toFixed(0)} %`;
    const computed = more("tokens_computed");
    if (computed) {
      $("read").textContent = (more("bytes_read") / 1e6 / computed).toFixed(1);
      phases(before, now, computed);
    }
    residents(now.resident, time);
  }

  function phases(before, now, computed) {
    const total = now.seconds - before.seconds;
    $("token-time").textContent = `${(1000 * total / computed).toFixed(1)} ms`;
    const bar = $("bar"), list = $("phases");
    if (!bar.children.length) {
      Object.values(PHASES).forEach((label, index) => {
        const part = document.createElement("i");
        part.className = `p${index + 1}`;
        bar.append(part);
        const row = document.createElement("li");
        const swatch = document.createElement("i");
        swatch.className = `swatch p${index + 1}`;
        row.append(swatch, label, document.createElement("b"));
        list.append(row);
      });
    }
    Object.keys(PHASES).forEach((name, index) => {
      const ms = 1000 * (now.phase_seconds[name] - before.phase_seconds[name]) / computed;
      bar.children[index].style.flexGrow = ms;
      list.children[index].lastChild.textContent = ms >= 0.005 ? ms.toFixed(ms < 1 ? 2 : 1) : "0";
    });
  }

  // A cell holds 0 for an absent expert, else the time when it was read; those of the first picture are old.
  function residents(layers, time) {
    let n = 0, all = 0;
    layers.forEach((digits, layer) => {
      const row = cells[layer];
      for (let expert = 0; expert < row.length; expert += 1) {
        const digit = parseInt(digits[expert >> 2], 16);
        const isThere = (digit >> (3 - (expert & 3))) & 1;
        if (!isThere) row[expert] = 0;
        else if (!row[expert]) row[expert] = last ? time : -1e9;
        n += isThere;
      }
      all += row.length;
    });
    last = layers;
    $("resident").textContent = `${n.toLocaleString("en")} of ${all.toLocaleString("en")} in memory`;
  }

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function fit(canvas, height) {
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.height = `${height}px`;
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    return [context, width];
  }

  // The widest lines whose cells are largest, within a height: layers with many experts take several lines.
  function layout(width) {
    const widest = Math.max(...cells.map((row) => row.length));
    for (let columns = 16; ; columns *= 2) {
      const pitch = width / columns;
      const lines = Math.ceil(widest / columns);
      const tall = Math.max(pitch, 2);
      const gap = lines > 1 ? Math.min(4, tall) : 0;
      const height = Math.ceil(cells.length * (lines * tall + gap) - gap);
      if (height <= MAP_HEIGHT || lines === 1) return { columns, pitch, lines, tall, gap, height };
    }
  }

  function drawMap(time) {
    if (!cells) return;
    const { columns, pitch, lines, tall, gap, height } = layout($("map").clientWidth);
    const [context] = fit($("map"), height);
    const space = pitch > 8 ? 1.5 : pitch > 4 ? 1 : pitch > 2.4 ? 0.6 : 0;
    const side = pitch - space;
    const rise = tall - (space || 0.4);
    const [absent, resident, hot] = [color("--empty"), color("--cell"), color("--hot")];
    cells.forEach((row, layer) => {
      for (let expert = 0; expert < row.length; expert += 1) {
        const x = (expert % columns) * pitch;
        const y = layer * (lines * tall + gap) + Math.floor(expert / columns) * tall;
        const age = row[expert] ? (time - row[expert]) / FADE_MS : 1;
        context.fillStyle = row[expert] ? resident : absent;
        context.fillRect(x, y, side, rise);
        if (row[expert] && age < 1) {
          context.globalAlpha = 1 - age;
          context.fillStyle = hot;
          context.fillRect(x, y, side, rise);
          context.globalAlpha = 1;
        }
      }
    });
  }

  function drawSpark(time) {
    const height = 48;
    const [context, width] = fit($("spark"), height);
    const top = Math.max(1, ...speeds.map(([, speed]) => speed)) * 1.1;
    const x = (at) => width * (1 - (time - at) / SPARK_MS);
    const y = (speed) => height - 2 - (height - 6) * speed / top;
    context.strokeStyle = color("--line");
    context.beginPath();
    context.moveTo(0, height - 1.5);
    context.lineTo(width, height - 1.5);
    context.stroke();
    if (!speeds.length) return;
    context.beginPath();
    context.moveTo(x(speeds[0][0]), height - 1.5);
    for (const [at, speed] of speeds) context.lineTo(x(at), y(speed));
    context.lineTo(x(time), y(speeds.at(-1)[1]));
    context.lineTo(x(time), height - 1.5);
    context.globalAlpha = 0.14;
    context.fillStyle = color("--accent");
    context.fill();
    context.globalAlpha = 1;
    context.beginPath();
    for (const [at, speed] of speeds) context.lineTo(x(at), y(speed));
    context.lineTo(x(time), y(speeds.at(-1)[1]));
    context.strokeStyle = color("--accent");
    context.lineWidth = 1.5;
    context.lineJoin = "round";
    context.stroke();
  }

  // Ten pictures a second are enough for what changes that often.
  setInterval(() => {
    if (!isWanted || document.hidden || !about) return;
    const time = performance.now();
    drawMap(time);
    drawSpark(time);
  }, 100);

  document.addEventListener("visibilitychange", () => { if (document.hidden) halt(); else run(); });
  return {
    set(visible) { isWanted = visible; if (visible) run(); else halt(); },
    restart() { halt(); run(); this.introduce(); },
    // Tells what there is also when the panel is closed.
    async introduce() {
      try {
        const response = await fetch("/engine", { headers: headers() });
        if (response.ok) introduce(await response.json());
      } catch { /* The next request says so. */ }
    },
  };
}
