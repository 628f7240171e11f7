// Limits of the reader: a text such as "bytes <= 30KB and accuracy >= 97%", sliders that edit it, and the candidate that
// `autocompress pick` selects within them.
const limitsPane = (() => {
  "use strict";
  const { at, element, colour, addCopyButton } = drawing;
  const STEPS = 500;

  // A bound as a reader types it: three digits, with the unit of the column.
  function writeQuantity(value, record) {
    if (record.isCounted || record.isShare) return formatting.formatValue(value, record).replaceAll(/[\s,]/g, "");
    return formatting.toGeneral(value, 3) + (record.unit === "ms" ? "ms" : "");
  }

  // Show a text that cannot be read, with the wrong piece marked.
  function showProblem(input, note, problem) {
    input.setAttribute("aria-invalid", String(Boolean(problem)));
    if (!problem) return note.replaceChildren();
    const text = input.value;
    const [start, end] = [problem.start ?? 0, problem.end ?? text.length];
    const excerpt = element("code");
    excerpt.append(text.slice(0, start), element("mark", text.slice(start, end) || "␣"), text.slice(end));
    const where = problem.start === undefined ? "" : `Character ${[...text.slice(0, start)].length + 1}: `;
    note.replaceChildren(`${where}${problem.message}`, element("br"), excerpt);
  }

  // A slider along one axis of the plot; it edits the limit on the column of that axis.
  function makeSlider(kind, run, edit) {
    const label = element("label", undefined, { class: "slider" });
    const [name, shown, line] = [element("span"), element("output"), element("span")];
    const input = element("input", undefined, { type: "range", min: 0, max: STEPS, step: 1, id: `limit-${kind}` });
    line.append(name, " ", shown);
    label.append(line, input);
    at("limits").append(label);
    const slider = { column: "", bound: "max", low: 0, high: 0, isLog: false };
    const toValue = (share) => (slider.isLog ? slider.low * (slider.high / slider.low) ** share : slider.low + (slider.high - slider.low) * share);
    const toShare = (value) => {
      const share = slider.isLog ? Math.log(value / slider.low) / Math.log(slider.high / slider.low) : (value - slider.low) / (slider.high - slider.low);
      return Math.min(1, Math.max(0, share || 0));
    };
    // At its open end, a slider is no limit.
    const openEnd = () => (slider.bound === "max" ? STEPS : 0);
    input.addEventListener("input", () => {
      const position = Number(input.value);
      edit(slider, position === openEnd() ? null : writeQuantity(toValue(position / STEPS), run.rule.records[slider.column]));
    });
    return {
      // Follow an axis: its column, and whether it is logarithmic.
      follow(column, isLog) {
        const record = run.rule.records[column];
        const values = run.data.map((_, row) => selection.readValue(run, row, column)).filter(Number.isFinite);
        const [low, high] = [values.reduce((one, other) => Math.min(one, other), Infinity), values.reduce((one, other) => Math.max(one, other), -Infinity)];
        Object.assign(slider, { column, bound: record.isMaximized ? "min" : "max", low, high, isLog: isLog && low > 0 });
        input.disabled = !(low < high);
        name.textContent = `${record.label} ${record.isMaximized ? "at least" : "at most"}`;
      },
      // Show the limit on the column of the axis, if there is one.
      show(limits) {
        const limit = limits.findLast(({ column, bound }) => column === slider.column && bound === slider.bound);
        input.value = limit ? Math.round(toShare(limit.value) * STEPS) : openEnd();
        const text = limit ? formatting.formatValue(limit.value, run.rule.records[slider.column]) : "any";
        shown.textContent = text;
        input.setAttribute("aria-valuetext", text);
      },
    };
  }

  function definitions(pairs) {
    const list = element("dl", undefined, { class: "facts" });
    for (const [term, text] of pairs) {
      const pair = element("div");
      pair.append(element("dt", term), element("dd", text));
      list.append(pair);
    }
    return list;
  }
  const sentence = (text) => `${text}${text.endsWith(".") ? "" : "."}`;

  function create(run, changed) {
    const [input, note, pane] = [at("limits-text"), at("limits-problem"), at("limited-pick")];
    const sliders = {};
    let [limits, chosen] = [[], null];

    function edit({ column, bound }, typed) {
      const others = limits.filter((limit) => limit.column !== column || limit.bound !== bound);
      const all = typed === null ? others : [...others, { column, bound, typed }];
      input.value = all.map((limit) => `${limit.column} ${limit.bound === "max" ? "<=" : ">="} ${limit.typed}`).join(" and ");
      update();
    }
    // Read the limits, select a candidate, and show both.
    function update() {
      let problem = null;
      try {
        limits = query.readLimits(input.value, run);
        for (const slider of Object.values(sliders)) slider.show(limits);
      } catch (error) {
        if (!(error instanceof query.FilterError)) throw error;
        problem = error;
      }
      showProblem(input, note, problem);
      if (!problem) select();
      changed();
    }
    function select() {
      chosen = null;
      at("no-limits").hidden = !limits.length;
      pane.hidden = !limits.length;
      at("pick-limits")?.replaceChildren();
      if (!limits.length) return;
      const command = element("pre", undefined, { class: "command" });
      command.append(element("code", selection.writeCommand(run, limits)));
      let content;
      try {
        chosen = selection.select(run, limits);
        content = describe(chosen);
        at("pick-limits")?.append("This is the recommended pick. Within the limits set on this page, it is ", element("a", chosen.id, { href: "#limited-pick" }), ".");
      } catch (problem) {
        if (!(problem instanceof selection.SelectionError)) throw problem;
        content = [element("h3", "No pick within the limits"), element("p", `${problem.message[0].toUpperCase()}${sentence(problem.message.slice(1))}`)];
      }
      pane.replaceChildren(...content, element("h4", "The same choice on the command line"), command);
      for (const code of pane.querySelectorAll(".command")) addCopyButton(code);
    }
    function describe({ row, id, reason, certificate, neighbours, alternatives, binding, ties, simulated }) {
      const { records, cost, score } = run.rule;
      const title = element("h3", "Pick within the limits: ");
      title.append(element("a", id, { href: `#card-${encodeURIComponent(id)}` }));
      const show = (name) => formatting.formatValue(selection.readValue(run, row, name), records[name]);
      const label = records[cost].unit ? "" : ` ${records[cost].label}`;
      const facts = [
        ["on select_val", `${show(score)} ${records[score].label}, ${show(cost)}${label}`],
        ...neighbours.map(({ kind, text }) => [kind, sentence(text)]),
        ...alternatives.map((text) => ["alternative", sentence(text)]),
        ...binding.map((text) => ["active constraint", sentence(text)]),
        ...(ties ? [["tied", sentence(ties)]] : []),
        ...(simulated ? [["simulated", `${simulated}: no kernel on this target, so the score is exact and a speed-up is not shown.`]] : []),
      ];
      const exported = element("pre", undefined, { class: "command" });
      exported.append(element("code", run.cards.command.replaceAll(run.cards.placeholder, id)));
      return [
        title, element("p", reason), ...(certificate ? [element("p", certificate, { class: "note" })] : []),
        definitions(facts), ...(run.rule.scopeNotice ? [element("p", run.rule.scopeNotice, { class: "note" })] : []),
        element("h4", "Export"), exported,
      ];
    }
    input.addEventListener("input", update);
    at("no-limits").addEventListener("click", () => {
      input.value = "";
      update();
      input.focus();
    });
    return {
      // Let the slider of an axis follow its column.
      follow(kind, column, isLog) {
        sliders[kind] ??= makeSlider(kind, run, edit);
        sliders[kind].follow(column, isLog);
        sliders[kind].show(limits);
      },
      get text() { return input.value; },
      set text(value) {
        if (value === input.value) return;
        input.value = value;
        update();
      },
      get chosen() { return chosen; },
      isSet: () => limits.length > 0,
      satisfies: (row) => limits.every(({ column, bound, value }) => {
        const amount = selection.readValue(run, row, column);
        return bound === "max" ? amount <= value : amount >= value;
      }),
      // The limits on the columns of the axes as lines across the plot.
      lines(columns) {
        const shape = { type: "line", line: { color: colour("orange"), width: 1.5, dash: "dot" } };
        return limits.flatMap(({ column, value }) =>
          column === columns.cost ? [{ ...shape, x0: value, x1: value, y0: 0, y1: 1, yref: "paper" }]
          : column === columns.score ? [{ ...shape, y0: value, y1: value, x0: 0, x1: 1, xref: "paper" }] : []);
      },
    };
  }
  return { create, showProblem };
})();
