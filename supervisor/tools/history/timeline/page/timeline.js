// The page's own script: texts on hover and by keyboard, and the readings, drawn by uPlot. Nothing is fetched.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip"), live = document.getElementById("live");

  // --- local time of the node, not of the reader

  const offset = t => { let o = data.zone[0][1]; for (const [since, s] of data.zone) if (t >= since) o = s; return o; };
  const local = t => new Date((t + offset(t)) * 1000);
  const two = n => String(n).padStart(2, "0");
  const WEEKDAYS = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
  const hhmm = t => { const d = local(t); return two(d.getUTCHours()) + ":" + two(d.getUTCMinutes()); };
  const date = t => { const d = local(t); return WEEKDAYS[d.getUTCDay()] + " " + d.getUTCDate(); };

  // --- texts

  const place = (x, y) => {
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    const left = Math.max(8, Math.min(x - width / 2, innerWidth - width - 8));
    const top = y + 18 + height > innerHeight ? Math.max(8, y - height - 14) : y + 18;
    tip.style.transform = `translate(${left}px, ${top}px)`;
  };
  const show = (seg, x, y) => { tip.textContent = seg.getAttribute("aria-label"); place(x, y); };
  const hide = () => { tip.hidden = true; };
  const box = seg => seg.querySelector(".body").getBoundingClientRect();
  const middle = seg => { const b = box(seg); return b.left + b.width / 2; };

  const lanes = [];
  for (const svg of document.querySelectorAll("svg.day")) {
    let first = true;
    for (const lane of svg.querySelectorAll(".lane")) {
      const x = seg => parseFloat(seg.querySelector("[x]").getAttribute("x"));
      const segs = [...lane.querySelectorAll(".seg")].sort((a, b) => x(a) - x(b));  // short ones are drawn last
      for (const seg of segs) {
        const title = seg.querySelector("title");
        seg.setAttribute("aria-label", title.textContent);
        seg.setAttribute("role", "img");
        seg.setAttribute("tabindex", first ? "0" : "-1");
        title.remove();
        first = false;
      }
      if (segs.length) lanes.push(segs);
    }
  }

  const focus = seg => {
    const svg = seg.closest("svg.day");
    svg.querySelector('.seg[tabindex="0"]')?.setAttribute("tabindex", "-1");
    seg.setAttribute("tabindex", "0");
    seg.focus();
  };
  const nearest = (segs, x) => segs.reduce((a, b) => Math.abs(middle(b) - x) < Math.abs(middle(a) - x) ? b : a);

  document.addEventListener("keydown", event => {
    const seg = event.target.closest?.(".seg");
    if (event.key === "Escape") hide();
    if (!seg || event.ctrlKey || event.altKey || event.metaKey) return;
    const n = lanes.findIndex(lane => lane.includes(seg)), lane = lanes[n], k = lane.indexOf(seg);
    const to = {
      ArrowRight: () => lane[k + 1], ArrowLeft: () => lane[k - 1], Home: () => lane[0], End: () => lane[lane.length - 1],
      ArrowDown: () => lanes[n + 1] && nearest(lanes[n + 1], middle(seg)),
      ArrowUp: () => lanes[n - 1] && nearest(lanes[n - 1], middle(seg)),
    }[event.key];
    if (!to) return;
    event.preventDefault();
    const next = to();
    if (next) focus(next);
  });
  document.addEventListener("focusin", event => {
    const seg = event.target.closest?.(".seg");
    if (!seg) { hide(); return; }
    const b = box(seg);
    show(seg, b.left + b.width / 2, b.bottom);
    live.textContent = seg.getAttribute("aria-label");
  });
  document.addEventListener("pointermove", event => {
    const seg = event.target.closest?.(".seg");
    if (seg) show(seg, event.clientX, event.clientY);
    else if (!document.activeElement?.closest(".seg")) hide();
  });
  document.addEventListener("click", event => {
    const seg = event.target.closest?.(".seg");
    if (seg) { focus(seg); show(seg, event.clientX, event.clientY); }
  });
  addEventListener("scroll", hide, { passive: true });

  // --- readings

  if (!data.at.length) return;
  let t = 0;
  const xs = data.at.map(step => t += step);
  const begin = xs[0], end = xs[xs.length - 1];
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const STEPS = [300, 900, 1800, 3600, 10800, 21600, 43200, 86400, 172800, 604800];
  const splits = (u, _axis, min, max) => {
    const width = u.over.clientWidth || 300;
    const step = STEPS.find(s => s / (max - min) * width >= 64) ?? 2592000;
    const ticks = [];
    for (let at = Math.ceil((min + offset(min)) / step) * step - offset(min); at <= max; at += step) ticks.push(at);
    return ticks;
  };
  const labels = (_u, ticks) => ticks.map(at => hhmm(at) === "00:00" || ticks[1] - ticks[0] >= 86400 ? date(at) : hhmm(at));
  const charts = [], HEIGHT = 180;
  let moving = false;
  const range = (min, max) => {
    const least = Math.min(600, end - begin), wide = Math.max(least, Math.min(end - begin, max - min));
    const from = Math.max(begin, Math.min(min, end - wide));
    moving = true;
    for (const u of charts) u.setScale("x", { min: from, max: from + wide });
    moving = false;
  };
  const limitAt = name => {
    const steps = data.limits[name];
    let n = 0;
    return xs.map(x => { while (n + 1 < steps.length && steps[n + 1][0] <= x) n++; return steps[n][1]; });
  };

  for (const { name, label, unit } of data.curves) {
    const host = document.getElementById("chart-" + name);
    const value = v => v == null ? "unknown" : v + " " + unit;
    const shown = (_u, v, _s, n) => n == null ? "" : value(v);
    const axis = { stroke: () => css("--soft"), grid: { stroke: () => css("--line"), width: 1 }, ticks: { stroke: () => css("--line") } };
    const u = new uPlot({
      width: host.clientWidth, height: HEIGHT, cursor: { sync: { key: "readings" }, y: false },
      scales: { x: { time: false }, y: { range: (_u, _min, max) => [0, Math.max(max * 1.08, 1)] } },
      axes: [{ ...axis, size: 34, splits, values: labels }, { ...axis, size: 60, values: (_u, ticks) => ticks.map(v => v + " " + unit) }],
      series: [
        { label: "time", value: (_u, v) => v == null ? "" : date(v) + " " + hhmm(v) },
        { label, stroke: () => css("--" + name), width: 1.5, points: { show: false }, value: shown },
        { label: "limit", stroke: () => css("--soft"), width: 1.5, dash: [6, 5], points: { show: false }, value: shown },
      ],
      hooks: { setScale: [(u, key) => { if (key === "x" && !moving && charts.includes(u)) range(u.scales.x.min, u.scales.x.max); }] },
    }, [xs, data[name], limitAt(name)], host);
    charts.push(u);
    new ResizeObserver(() => { if (host.clientWidth !== u.width) u.setSize({ width: host.clientWidth, height: HEIGHT }); }).observe(host);
    let k = -1;
    host.addEventListener("keydown", event => {
      const { min, max } = u.scales.x, wide = max - min;
      const at = k < 0 ? (min + max) / 2 : xs[k];
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (move) {
        k = k < 0 ? xs.findIndex(x => x >= at) : k + move * (event.shiftKey ? 30 : 1);
        k = Math.max(0, Math.min(xs.length - 1, k));
        if (xs[k] < min || xs[k] > max) range(xs[k] - wide / 2, xs[k] + wide / 2);
        u.setCursor({ left: u.valToPos(xs[k], "x"), top: 10 }, true, true);
        live.textContent = `${date(xs[k])} ${hhmm(xs[k])}: ${label} ${value(data[name][k])}, limit ${value(u.data[2][k])}`;
      } else if (event.key === "+" || event.key === "=") range(at - wide / 4, at + wide / 4);
      else if (event.key === "-") range(at - wide, at + wide);
      else if (event.key === "0") range(begin, end);
      else return;
      event.preventDefault();
    });
  }
  document.addEventListener("click", event => {
    const button = event.target.closest?.("button");
    if (!button) return;
    const { min, max } = charts[0].scales.x, wide = max - min, mid = (min + max) / 2;
    const acts = {
      back: () => range(min - wide, max - wide), on: () => range(min + wide, max + wide), whole: () => range(begin, end),
      near: () => range(mid - wide / 4, mid + wide / 4), far: () => range(mid - wide, mid + wide),
      day: () => {
        range(+button.dataset.from, +button.dataset.to);
        document.getElementById("readings").scrollIntoView({ block: "start" });
        document.getElementById("chart-cpu").focus({ preventScroll: true });
      },
    };
    acts[button.dataset.act]?.();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach(u => u.redraw()));
  document.documentElement.dataset.ready = "1";
})();
