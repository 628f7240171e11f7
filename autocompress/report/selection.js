// The candidate under limits, as `autocompress pick --max NAME=VALUE --min NAME=VALUE` selects it: the rule of
// autocompress/analysis/selection.py on the data of report/selection_data.py. A test compares both on random tables.
const selection = (() => {
  "use strict";
  const { formatValue, formatDifference, isMeasurable, compareCosts, formatNumber, formatPlural, withCommas } = formatting;
  const MOST_ALTERNATIVES = 3;
  // Standard normal variable whose two-sided p-value is the level of the tests, 5%.
  const CRITICAL = 1.959963984540054;

  class SelectionError extends Error {}

  // Values of objectives are exact; a value that is missing is NaN, which satisfies no comparison.
  function readValue({ columns, data, rule }, row, name) {
    const cell = rule.exact[name] ? rule.exact[name][row] : data[row][columns.indexOf(name)];
    return cell === null || cell === undefined || typeof cell === "string" ? NaN : Number(cell);
  }
  // Rows that no other one dominates; `costs` gives the values of a row, of which smaller ones are better.
  function paretoFront(rows, costs) {
    const points = rows.map((row) => ({ row, costs: costs(row) }));
    // A row is dominated only by rows before it in this order.
    const compare = (one, other) => one.reduce((order, amount, index) => order || amount - other[index], 0);
    points.sort((one, other) => compare(one.costs, other.costs));
    const front = [];
    for (const point of points) {
      const isDominated = front.some((other) => other.costs.every((amount, index) => amount <= point.costs[index]) && compare(other.costs, point.costs) !== 0);
      if (!isDominated) front.push(point);
    }
    return front.map(({ row }) => row);
  }

  // ---- statistical ties, as autocompress/analysis/significance.py tests them --------------------
  // The examples that a candidate classifies correctly, by head: "3:wA==" holds three.
  function unpackCorrect(texts) {
    return texts.map((text) => {
      const [size, code] = [parseInt(text, 10), text.slice(text.indexOf(":") + 1)];
      const bytes = Uint8Array.from(atob(code), (character) => character.charCodeAt(0));
      return Array.from({ length: size }, (_, index) => (bytes[index >> 3] >> (7 - (index & 7))) & 1);
    });
  }
  const isNear = (difference, error) => (error === 0 ? difference === 0 : Math.abs(difference) / error < CRITICAL);
  function isPairTied(one, other) {
    const size = one[0].length;
    if (one.length === 1) {
      const [better, worse] = [0, 0].map((_, side) => one[0].reduce((sum, bit, index) => sum + (bit !== other[0][index] && bit === side), 0));
      const [least, of] = [Math.min(better, worse), better + worse];
      let [term, total] = [1n, 1n];
      for (let count = 0; count < least; count++) {
        term = (term * BigInt(of - count)) / BigInt(count + 1);
        total += term;
      }
      // 2 total / 2^of > 1/20, or no difference at all.
      return of === 0 || 40n * total > 1n << BigInt(of);
    }
    const changes = one[0].map((_, index) => one.reduce((sum, bits, head) => sum + bits[index] - other[head][index], 0) / one.length);
    const mean = changes.reduce((sum, change) => sum + change, 0) / size;
    const variance = changes.reduce((sum, change) => sum + (change - mean) ** 2, 0) / (size - 1);
    return changes.every((change) => change === 0) || isNear(mean, size > 1 ? Math.sqrt(variance / size) : 0);
  }
  const isShareTied = (one, other, examples) => isNear(one - other, Math.sqrt((one * (1 - one) + other * (1 - other)) / examples));

  function select(run, limits) {
    const { columns, data, rule } = run;
    const identity = columns.indexOf("id");
    const records = rule.records;
    const [cost, score] = [records[rule.cost], records[rule.score]];
    const id = (row) => String(data[row][identity]);
    const value = (row, name) => readValue(run, row, name);
    const sign = score.isMaximized ? 1 : -1;

    // ---- limits -------------------------------------------------------------------------------
    function checkLimits() {
      const given = {};
      for (const bound of ["max", "min"]) {
        for (const limit of limits.filter((one) => one.bound === bound)) {
          if (limit.column.endsWith("_test")) {
            throw new SelectionError(`'${limit.column}' is a test score: candidates cannot be chosen by their scores on the test split`);
          }
          (given[limit.column] ??= {})[bound] = limit.value;
        }
      }
      for (const [name, { min, max }] of Object.entries(given)) {
        if (min > max) throw new SelectionError(`the limits on '${name}' exclude each other: at least ${formatNumber(min)}, at most ${formatNumber(max)}`);
      }
      for (const [name, bounds] of Object.entries(given)) {
        const [[bound, number], another] = Object.entries(bounds);
        // Two bounds are a range, which is meant.
        if (!records[name] || another) continue;
        const right = records[name].isMaximized ? "min" : "max";
        if (bound === right) continue;
        const [better, text] = [records[name].isMaximized ? "larger" : "smaller", formatNumber(number)];
        throw new SelectionError(
          `${bound} ${name}=${text} excludes the best candidates, because a ${better} ${records[name].label} is better; ` +
          `did you mean ${right} ${name}=${text} (--${right} ${name}=${text})? A range needs both bounds`,
        );
      }
      return given;
    }
    const isWithin = (amount, bound, limit) => (bound === "max" ? amount <= limit : amount >= limit);
    const isFeasible = (row, bounds) => Object.entries(bounds).every(([name, ends]) =>
      Number.isFinite(value(row, name)) && Object.entries(ends).every(([bound, limit]) => isWithin(value(row, name), bound, limit)));
    const formatLimits = (bounds) => Object.entries(bounds).flatMap(([name, ends]) =>
      Object.entries(ends).map(([bound, limit]) => `${name} ${bound === "max" ? "<=" : ">="} ${formatNumber(limit)}`));

    // ---- orders -------------------------------------------------------------------------------
    const byCost = (rows) => [...rows].sort((one, other) => rule.ranks[one] - rule.ranks[other]);
    function bestOf(rows, name) {
      const values = rows.map((row) => value(row, name));
      const best = values.reduce((one, other) => (records[name].isMaximized ? Math.max(one, other) : Math.min(one, other)));
      return byCost(rows.filter((_, index) => values[index] === best))[0];
    }
    const toMinimize = (row) => rule.objectives.map((name) => (records[name].isMaximized ? -1 : 1) * value(row, name));

    // ---- sentences ----------------------------------------------------------------------------
    const describeRow = (row) => `${id(row)} (${formatValue(value(row, rule.score), score)}, ${formatValue(value(row, rule.cost), cost)})`;
    function describeExchange(kind, other, chosen) {
      const change = value(other, rule.score) - value(chosen, rule.score);
      const saving = compareCosts(value(other, rule.cost), value(chosen, rule.cost), cost);
      const points = `${formatDifference(change, score)} of ${score.label}`;
      const text = !isMeasurable(change, value(chosen, rule.score), score) ? `${id(other)} has ${saving} at the same ${score.label}`
        : kind === "cheaper" ? `${id(other)} has ${saving} and loses ${points}`
        : `${id(other)} gains ${points} and has ${saving}`;
      return { kind, id: id(other), text };
    }
    function findNeighbours(chosen, rankable, bounds) {
      const front = paretoFront(rankable.filter((row) => rule.searched[row] && isFeasible(row, bounds)), toMinimize);
      const gain = (row) => (value(row, rule.score) - value(chosen, rule.score)) * sign;
      const cheaper = front.filter((row) => value(row, rule.cost) < value(chosen, rule.cost) && gain(row) <= 0);
      const better = front.filter((row) => gain(row) > 0);
      return [
        ...(cheaper.length ? [describeExchange("cheaper", bestOf(cheaper, rule.score), chosen)] : []),
        ...(better.length ? [describeExchange("better", bestOf(better, rule.cost), chosen)] : []),
      ];
    }
    function nearestMiss(rows, bounds) {
      if (!rows.length) return rule.unusable;
      const least = (values) => values.reduce((best, amount, index) => (amount < (values[best] ?? Infinity) || Number.isNaN(values[best]) ? index : best), 0);
      const [misses, excesses] = [[], []];
      for (const [name, ends] of Object.entries(bounds)) {
        if (!rows.some((row) => Number.isFinite(value(row, name)))) return `no candidate has a finite ${name}`;
        for (const [bound, limit] of Object.entries(ends)) {
          const excess = rows.map((row) => (bound === "max" ? value(row, name) - limit : limit - value(row, name)) / (Math.abs(limit) || 1));
          excesses.push(excess);
          if (excess.some((amount) => amount <= 0)) continue;
          const nearest = least(excess);
          const condition = formatLimits({ [name]: { [bound]: limit } })[0];
          const text = `${condition}; the ${bound === "max" ? "smallest" : "largest"} is ${formatNumber(value(rows[nearest], name))} (${id(rows[nearest])})`;
          misses.push([excess[nearest], text]);
        }
      }
      if (misses.length) {
        misses.sort((one, other) => one[0] - other[0] || (one[1] < other[1] ? -1 : 1));
        return `no candidate has ${misses.map(([, text]) => text).join("; none has ")}`;
      }
      const worst = rows.map((_, index) => Math.max(...excesses.map((excess) => excess[index])));
      if (!worst.some(Number.isFinite)) return `no candidate has all of ${Object.keys(bounds).join(", ")}`;
      const nearest = rows[least(worst)];
      const amounts = Object.keys(bounds).map((name) => `${name} ${formatNumber(value(nearest, name))}`);
      return `no candidate has ${formatLimits(bounds).join(" and ")} together; the nearest is ${id(nearest)} (${amounts.join(", ")})`;
    }
    function describeActiveLimits(rows, bounds, chosen, name) {
      const sentences = [];
      for (const [column, ends] of Object.entries(bounds)) {
        for (const [bound, limit] of Object.entries(ends)) {
          const { [bound]: _, ...rest } = ends;
          const without = { ...bounds, [column]: rest };
          const alternative = bestOf(rows.filter((row) => isFeasible(row, without)), name);
          if (alternative !== chosen) {
            sentences.push(`${formatLimits({ [column]: { [bound]: limit } })[0]}; without it, ${describeRow(alternative)} would be chosen`);
          }
        }
      }
      return sentences;
    }
    // Only a candidate without kernels on the target can dominate the selected one: any other would have been selected.
    function explainRejection(row, chosen) {
      const names = new Set([...rule.objectives.filter((name) => records[name].kind === "cost"), "bytes"]);
      const higher = [...names].filter((name) => records[name] && name !== rule.cost && value(row, name) > value(chosen, name)).map((name) =>
        `${formatValue(value(row, name), records[name])} against ${formatValue(value(chosen, name), records[name])} (${records[name].label})`);
      const reason = `it has no kernel on the target ${rule.target} (${rule.simulated[row]})`;
      return higher.length ? `${reason}; it has ${higher.join(" and ")}` : reason;
    }
    function describeChange(row, chosen) {
      const change = (value(row, rule.score) - value(chosen, rule.score)) * sign;
      if (!isMeasurable(change, value(chosen, rule.score), score)) return `has the same ${score.label}`;
      return `${change > 0 ? "gains" : "loses"} ${formatDifference(change, score)} of ${score.label}`;
    }
    function describeAlternatives(chosen, rankable, bounds) {
      const rows = rankable.filter((row) => row !== chosen && isFeasible(row, bounds));
      const isDominating = (row) => {
        const [gain, saved] = [(value(row, rule.score) - value(chosen, rule.score)) * sign, value(chosen, rule.cost) - value(row, rule.cost)];
        return gain >= 0 && saved >= 0 && (gain > 0 || saved > 0);
      };
      const isBaseline = (row) => Object.hasOwn(rule.baselines, id(row));
      return [
        ...rows.filter(isBaseline).map((row) => {
          const text = `${rule.baselines[id(row)]}: ${describeRow(row)}`;
          return isDominating(row) ? `${text}; ${explainRejection(row, chosen)}` : `${text}, which ${describeChange(row, chosen)}`;
        }),
        ...byCost(rows.filter((row) => isDominating(row) && !isBaseline(row))).slice(0, MOST_ALTERNATIVES).map((row) =>
          `${describeRow(row)} is no more expensive and at least as good on the selection split; ${explainRejection(row, chosen)}`),
      ];
    }

    // The candidates of the front under the limits that are tied with the chosen one, in a sentence.
    function describeTies(chosen, rows, bounds) {
      if (!rule.ties) return "";
      if (rule.ties.isLeftOut) return "the command line tests which candidates of the front are statistically tied with it";
      const isFull = (row) => rule.searched[row] && rule.complete[row] && rule.objectives.every((name) => Number.isFinite(value(row, name)));
      const front = paretoFront(rows.filter((row) => isFull(row) && isFeasible(row, bounds)), toMinimize);
      const others = front.filter((row) => id(row) !== id(chosen));
      const read = (row) => rule.ties.correct?.[row] && unpackCorrect(rule.ties.correct[row]);
      const [own, rest] = [read(chosen), others.map(read)];
      const hasSame = (bits) => bits && bits.length === own.length && bits[0].length === own[0].length;
      let [tied, method] = [[], ""];
      if (own && rest.length && rest.every(hasSame)) {
        tied = others.filter((_, index) => isPairTied(own, rest[index]));
        const test = own.length === 1 ? "McNemar's exact test" : `a paired z test on the mean of ${own.length} heads`;
        method = `${test} on the same ${withCommas(String(own[0].length))} select_val examples`;
      } else {
        if (!rule.ties.examples) return "";
        tied = others.filter((row) => isShareTied(value(chosen, rule.score), value(row, rule.score), rule.ties.examples));
        method = `unpaired binomial test on ${withCommas(String(rule.ties.examples))} select_val examples`;
      }
      if (!tied.length) return `No other front candidate is statistically tied with it (${method})`;
      const least = byCost(tied)[0];
      const text = `${formatPlural(tied.length, "other front candidate")} ${tied.length === 1 ? "is" : "are"} statistically tied with it`;
      const saving = compareCosts(value(least, rule.cost), value(chosen, rule.cost), cost);
      const cheapest = value(least, rule.cost) < value(chosen, rule.cost) ? `; the cheapest, ${id(least)} (${formatValue(value(least, rule.score), score)}), has ${saving}` : "";
      return `${text}${cheapest} (${method})`;
    }

    // ---- the selection --------------------------------------------------------------------------
    const given = checkLimits();
    const table = data.map((_, row) => row).sort((one, other) => rule.positions[one] - rule.positions[other]);
    const rankable = table.filter((row) => rule.rankable[row]);
    const rows = rule.hasTarget ? rankable.filter((row) => !rule.simulated[row]) : rankable;
    if (rankable.length && !rows.length) {
      throw new SelectionError(
        `no candidate has kernels on the target ${rule.target} (for example ${id(rankable[0])}: ${rule.simulated[rankable[0]]}); ` +
        "search bits that it has, or allow simulated ones with --simulated (simulated=True)",
      );
    }
    const bounds = {};
    for (const name of [...Object.keys(rule.limits), ...Object.keys(given)]) bounds[name] = { ...rule.limits[name], ...given[name] };
    const feasible = rows.filter((row) => isFeasible(row, bounds));
    if (!feasible.length) throw new SelectionError(nearestMiss(rows, bounds));
    // A limit on a cost asks for the best score within it, and limits on scores for the lowest cost.
    const preferred = Object.keys(given).every((name) => records[name]?.kind === "score") ? rule.cost : rule.score;
    const chosen = bestOf(feasible, preferred);
    const { isMaximized, isCounted, label } = records[preferred];
    const conditions = formatLimits(bounds).join(" and ");
    const among = feasible.length === 1 ? "one candidate" : conditions ? `the ${withCommas(String(feasible.length))} candidates` : `all ${formatPlural(feasible.length, "candidate")}`;
    return {
      row: chosen,
      id: id(chosen),
      reason: `The ${isMaximized ? "highest" : isCounted ? "fewest" : "lowest"} ${label} among ${among}${conditions && ` with ${conditions}`}.`,
      neighbours: findNeighbours(chosen, rankable, bounds),
      binding: describeActiveLimits(rows, bounds, chosen, preferred),
      alternatives: describeAlternatives(chosen, rankable, bounds),
      certificate: rule.certificates[id(chosen)] || "",
      ties: describeTies(chosen, table, bounds),
      simulated: rule.simulated[chosen],
    };
  }

  // The command that makes the same choice.
  const quote = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`);
  const writeCommand = ({ rule }, limits) => [
    rule.command,
    ...["max", "min"].flatMap((bound) => limits.filter((one) => one.bound === bound).map(({ column, typed }) => `--${bound} ${quote(`${column}=${typed}`)}`)),
  ].join(" ");

  return { select, writeCommand, readValue, paretoFront, SelectionError };
})();
