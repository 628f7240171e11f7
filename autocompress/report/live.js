// A page that is served while its run goes on: it reloads when there is more to show, and stays as the reader left it.
(() => {
  "use strict";
  const KEPT = "autocompress-live";
  const pane = document.createElement("p");
  pane.className = "live-note";
  pane.setAttribute("role", "status");
  pane.textContent = "Live: results come in as the search finds them.";
  document.querySelector("header").prepend(pane);

  addEventListener("ready", () => {
    const kept = JSON.parse(sessionStorage.getItem(KEPT) || "null");
    if (!kept) return;
    for (const [name, value] of Object.entries(kept.fields)) {
      const field = document.querySelector(`[data-kept="${name}"]`);
      if (!field || field.value === value) continue;
      field.value = value;
      for (const event of ["input", "change"]) field.dispatchEvent(new Event(event));
    }
    for (const id of kept.open) document.getElementById(id)?.setAttribute("open", "");
    scrollTo(0, kept.top);
  });
  function keep() {
    const fields = {};
    for (const field of document.querySelectorAll("[data-kept]")) fields[field.dataset.kept] = field.value;
    const open = [...document.querySelectorAll("details[open][id]")].map((each) => each.id);
    sessionStorage.setItem(KEPT, JSON.stringify({ fields, open, top: scrollY }));
  }

  // A reader who is doing something is not interrupted.
  let touched = 0;
  for (const event of ["pointermove", "keydown", "wheel", "touchstart"]) {
    addEventListener(event, () => { touched = Date.now(); }, { passive: true });
  }
  let shown = null;
  async function look() {
    try {
      const version = await (await fetch("version", { cache: "no-store" })).text();
      shown ??= version;
      if (version !== shown && Date.now() - touched > 1500) {
        keep();
        location.reload();
        return;
      }
      if (version.startsWith("ended")) {
        pane.textContent = "The search has ended: this is what it came to.";
        return;
      }
    } catch {
      pane.textContent = "The server that showed this page has ended.";
      return;
    }
    setTimeout(look, 2000);
  }
  look();
})();
