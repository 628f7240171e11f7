// The filter of plot and table. The grammar is that of autocompress/analysis/query.py, which this file follows function
// by function; tests/analysis/filter_cases.json has cases on which both must agree.
const query = (() => {
  "use strict";
  const [LONGEST, DEEPEST, MOST_NAMES] = [2000, 50, 30];
  const NAME_CHARACTER = `[^\\s()<>=!,"']`;
  const COMPARISONS = {
    "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b,
    "=": (a, b) => a === b, "==": (a, b) => a === b, "!=": (a, b) => a !== b,
  };
  const TRUTH = { true: 1, false: 0 };
  const VALUES = ["column", "number", "text", "word"];

  // An error at characters start to end of the text; both count UTF-16 units.
  class FilterError extends Error {
    constructor(problem, start, end) {
      super(problem);
      Object.assign(this, { start, end });
    }
  }
  const refuse = (problem, { start, end }) => { throw new FilterError(problem, start, end); };
  const shorten = (text) => ([...text].length <= 60 ? text : `${[...text].slice(0, 57).join("")}...`);
  const nameToken = ({ text }) => `'${shorten(text)}'`;
  const escapePattern = (text) => text.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&");

  // ---- the nearest name, as Python's difflib finds it ----------------------------------------
  // The number of characters in matching blocks of two texts.
  function countMatches(a, b, [aLow, aHigh, bLow, bHigh] = [0, a.length, 0, b.length]) {
    let [bestA, bestB, size] = [aLow, bLow, 0];
    let lengths = new Map();
    for (let i = aLow; i < aHigh; i++) {
      const next = new Map();
      for (let j = bLow; j < bHigh; j++) {
        if (a[i] !== b[j]) continue;
        const length = (lengths.get(j - 1) || 0) + 1;
        next.set(j, length);
        if (length > size) [bestA, bestB, size] = [i - length + 1, j - length + 1, length];
      }
      lengths = next;
    }
    if (!size) return 0;
    return size + countMatches(a, b, [aLow, bestA, bLow, bestB]) + countMatches(a, b, [bestA + size, aHigh, bestB + size, bHigh]);
  }
  const compareText = (a, b) => {
    const [one, other] = [a, b].map((text) => [...text].map((letter) => letter.codePointAt(0)));
    const at = one.findIndex((code, index) => code !== other[index]);
    return at < 0 ? one.length - other.length : (one[at] ?? -1) - (other[at] ?? -1);
  };
  function didYouMean(name, names) {
    const sorted = [...names].sort(compareText);
    let [best, nearest] = [0.6, null];
    for (const known of sorted) {
      const [a, b] = [[...known], [...name]];
      const ratio = (2 * countMatches(a, b)) / (a.length + b.length);
      if (ratio >= best) [best, nearest] = [ratio, known];
    }
    if (nearest !== null) return `did you mean '${nearest}'?`;
    const others = sorted.length > MOST_NAMES ? ` and ${sorted.length - MOST_NAMES} more` : "";
    return `known: ${sorted.slice(0, MOST_NAMES).join(", ") || "none"}${others}`;
  }

  // ---- tokens ---------------------------------------------------------------------------------
  function tokenReader({ columns, grammar }) {
    const names = columns.filter(Boolean).sort((a, b) => b.length - a.length).map(escapePattern);
    const whole = (pattern) => new RegExp(`${pattern}(?!${NAME_CHARACTER})`, "y");
    const [column, quantity] = [names.length ? whole(`(?:${names.join("|")})`) : null, whole(`[-+]?${grammar.number}(?:\\s*${grammar.unit})?`)];
    const [sign, word, space] = [/<=|>=|==|!=|[<>=]/y, new RegExp(`${NAME_CHARACTER}+`, "y"), /\s*/y];
    const match = (pattern, text, at) => {
      pattern.lastIndex = at;
      return pattern.exec(text)?.[0];
    };
    function readToken(text, at) {
      const character = String.fromCodePoint(text.codePointAt(at));
      const make = (kind, piece, length = piece.length) => ({ kind, text: piece, start: at, end: at + length });
      let piece;
      if (column && (piece = match(column, text, at))) return make("column", piece);
      if ("()".includes(character)) return make(character, character);
      if ((piece = match(sign, text, at))) return make("sign", piece);
      if (`'"`.includes(character)) {
        const end = text.indexOf(character, at + 1);
        if (end < 0) throw new FilterError("this quotation mark has no partner", at, at + 1);
        return make("text", text.slice(at + 1, end), end + 1 - at);
      }
      if ((piece = match(quantity, text, at))) return make("number", piece);
      if ((piece = match(word, text, at))) return make(["and", "or", "not"].find((name) => name === piece.toLowerCase()) || "word", piece);
      throw new FilterError(`'${character}' has no meaning here`, at, at + character.length);
    }
    return (text) => {
      const tokens = [];
      let at = 0;
      for (;;) {
        at += match(space, text, at).length;
        if (at === text.length) return [...tokens, { kind: "end", text: "", start: at, end: at }];
        tokens.push(readToken(text, at));
        at = tokens.at(-1).end;
      }
    };
  }

  // A number with its unit as a number; throws if the unit belongs to another column.
  function parseQuantity(token, grammar, column) {
    const [, number, suffix] = token.text.match(new RegExp(`^([-+]?${grammar.number})\\s*(${grammar.unit})?$`));
    const [, prefix = "", unit = ""] = (suffix || "").match(/^([KMG]i|[kKMGTP])?\s?(%|ms|FLOPs|MACs|BOPs|B)?$/);
    if (unit === "%") return Number(number) / 100;
    const own = column && (grammar.units[column] || (column.endsWith("_ms") ? "ms" : ""));
    if (unit && column && unit !== own) refuse(`'${token.text}' is in ${unit}, and ${column} ${own ? `in ${own}` : "has no unit"}`, token);
    return Number(number) * grammar.factors[prefix];
  }

  // ---- the parser: it evaluates conditions on all rows while it reads them ---------------------
  class Filter {
    constructor(text, run) {
      const length = [...text].length;
      if (length > LONGEST) throw new FilterError(`the filter has more than ${LONGEST.toLocaleString("en")} characters`, LONGEST, length);
      Object.assign(this, { run, tokens: run.readTokens(text), at: 0, depth: 0 });
    }
    get token() { return this.tokens[this.at]; }
    mask(holds) { return this.run.data.map((cells, row) => holds(cells, row)); }

    select() {
      const mask = this.readEither();
      if (this.token.kind === ")") refuse("this parenthesis closes none", this.token);
      if (this.token.kind !== "end") refuse(`write 'and' or 'or' before ${nameToken(this.token)}`, this.token);
      return mask;
    }
    readEither() {
      let mask = this.readBoth();
      while (this.token.kind === "or") {
        this.at += 1;
        const other = this.readBoth();
        mask = mask.map((holds, row) => holds || other[row]);
      }
      return mask;
    }
    readBoth() {
      let mask = this.readInverse();
      while (this.token.kind === "and") {
        this.at += 1;
        const other = this.readInverse();
        mask = mask.map((holds, row) => holds && other[row]);
      }
      return mask;
    }
    readInverse() {
      if (!["not", "("].includes(this.token.kind)) return this.readCondition();
      const opening = this.tokens[this.at++];
      this.depth += 1;
      if (this.depth > DEEPEST) refuse(`more than ${DEEPEST} parentheses and 'not' around a condition`, opening);
      const mask = opening.kind === "not" ? this.readInverse().map((holds) => !holds) : this.readEither();
      this.depth -= 1;
      if (opening.kind === "(") {
        if (this.token.kind === "end") refuse("this parenthesis is not closed", opening);
        if (this.token.kind !== ")") refuse(`write 'and' or 'or' before ${nameToken(this.token)}`, this.token);
        this.at += 1;
      }
      return mask;
    }
    readCondition() {
      const first = this.tokens[this.at++];
      if (!VALUES.includes(first.kind)) refuse(`a condition is missing ${first.kind === "end" ? "at the end" : `before ${nameToken(first)}`}`, first);
      if (this.token.kind === "sign") return this.readComparison(first);
      if (first.kind === "column") refuse(`'${first.text}' needs a comparison, such as ${first.text} >= 0.95`, first);
      if (first.kind === "number") refuse(`the number '${first.text}' is compared with nothing`, first);
      const piece = first.text.toLowerCase();
      return this.mask((_, row) => this.run.texts(row).some((text) => text.includes(piece)));
    }
    readComparison(first) {
      let [left, mask] = [this.readOperand(first), this.mask(() => true)];
      while (this.token.kind === "sign") {
        const [sign, token] = [this.tokens[this.at++], this.tokens[this.at++]];
        if (!VALUES.includes(token.kind)) {
          refuse(`a column, a number or a quoted text is missing ${token.kind === "end" ? "at the end" : `before ${nameToken(token)}`}`, token);
        }
        if (left.isText && token.kind === "word") refuse(`write ${nameToken(token)} in quotation marks`, token);
        const right = this.readOperand(token);
        const holds = this.compare(left, sign.text, right);
        mask = mask.map((value, row) => value && holds[row]);
        left = right;
      }
      return mask;
    }
    // One side of a comparison: the value in a row, whether it is text, and its token.
    readOperand(token) {
      const { columns, kinds, grammar } = this.run;
      if (token.kind === "column") {
        const column = columns.indexOf(token.text);
        if (kinds[column] === "nested") refuse(`the column '${token.text}' holds neither numbers nor text`, token);
        const isText = kinds[column] === "text";
        return { token, isText, value: (cells) => (cells[column] === null || isText ? cells[column] : Number(cells[column])) };
      }
      if (token.kind === "text") return { token, isText: true, value: () => token.text };
      const value = token.kind === "number" ? parseQuantity(token, grammar) : TRUTH[token.text.toLowerCase()];
      if (value === undefined) {
        if (/^[0-9]/.test(token.text)) refuse(`'${token.text}' is no number such as 2e6, 97% or 30KB`, token);
        refuse(`unknown column '${token.text}': ${didYouMean(token.text, columns)}`, token);
      }
      if (!Number.isFinite(value)) refuse(`the number ${nameToken(token)} is too large`, token);
      return { token, isText: false, value: () => value };
    }
    compare(left, sign, right) {
      const pairs = this.mask((cells) => [left.value(cells), right.value(cells)]);
      const present = pairs.map(([one, other]) => one !== null && other !== null);
      // As in SQL, a missing value satisfies no comparison.
      if (!present.includes(true)) return present;
      const span = { start: left.token.start, end: right.token.end };
      if (left.isText !== right.isText) {
        const [text, number] = left.isText ? [left, right] : [right, left];
        refuse(`this compares the text ${nameToken(text.token)} with the number ${nameToken(number.token)}`, span);
      }
      if (left.isText && !["=", "==", "!="].includes(sign)) refuse(`texts are compared by == and != only, not by ${sign}`, span);
      for (const [column, number] of [[left.token, right.token], [right.token, left.token]]) {
        if (column.kind === "column" && number.kind === "number") parseQuantity(number, this.run.grammar, column.text);
      }
      return pairs.map(([one, other], row) => present[row] && COMPARISONS[sign](one, other));
    }
  }

  // Add to the data of a run what filters need: a reader of tokens, and the texts of each row in small letters.
  function prepare(run) {
    const texts = new Map();
    const columns = run.columns.flatMap((_, column) => (run.kinds[column] === "text" ? [column] : []));
    return Object.assign(run, {
      readTokens: tokenReader(run),
      texts(row) {
        if (!texts.has(row)) texts.set(row, columns.map((column) => run.data[row][column]).filter((cell) => cell !== null).map((cell) => cell.toLowerCase()));
        return texts.get(row);
      },
    });
  }
  // Whether each row satisfies a filter.
  const selectRows = (text, run) => new Filter(text, run).select();

  // Limits such as "bytes <= 30KB and accuracy >= 97%": a list of column, bound, value and the number as it was typed.
  function readLimits(text, run) {
    const tokens = run.readTokens(text);
    const limits = [];
    if (tokens[0].kind === "end") return limits;
    for (let at = 0; ; at += 4) {
      const [column, sign, number, joint] = tokens.slice(at, at + 4).concat(Array(4).fill(tokens.at(-1)));
      if (column.kind === "word") refuse(`unknown column '${column.text}': ${didYouMean(column.text, run.columns)}`, column);
      if (column.kind !== "column") refuse("a limit begins with a column, as in bytes <= 30KB", column);
      if (!["<=", ">="].includes(sign.text)) refuse("write <= or >=: a limit includes its bound", sign);
      if (number.kind !== "number") refuse("a number is missing, such as 2e6, 97% or 30KB", number);
      const value = parseQuantity(number, run.grammar, column.text);
      if (!Number.isFinite(value)) refuse(`the number ${nameToken(number)} is too large`, number);
      limits.push({ column: column.text, bound: sign.text === "<=" ? "max" : "min", value, typed: number.text.replace(/\s+/g, "") });
      if (joint.kind === "end") return limits;
      if (joint.kind !== "and") refuse(`write 'and' before ${nameToken(joint)}: all limits must hold`, joint);
    }
  }

  return { prepare, selectRows, readLimits, FilterError };
})();
