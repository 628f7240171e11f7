// Numbers in words, letter for letter those of autocompress/core/formatting.py.
const formatting = (() => {
  "use strict";
  const PREFIXES = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "K"]];
  const DASH = "–";
  // Python rounds a tie to the even digit, JavaScript away from zero.
  const isEvenTie = (digits, kept) => /^50*$/.test(digits.slice(kept)) && "02468".includes(digits[kept - 1]);

  function toFixed(value, decimals) {
    const long = value.toFixed(decimals + 30);
    const digits = long.replace(/[-.]/g, "");
    if (!isEvenTie(digits, digits.length - 30)) return value.toFixed(decimals);
    return long.slice(0, long.length - 30).replace(/\.$/, "");
  }
  // Python's format "g".
  function toGeneral(value, precision) {
    if (value === 0) return "0";
    const [long] = Math.abs(value).toExponential(precision + 29).split("e");
    const digits = long.replace(".", "");
    const [short, power] = isEvenTie(digits, precision)
      ? [long.slice(0, precision + (precision > 1)), Math.abs(value).toExponential(precision + 29).split("e")[1]]
      : Math.abs(value).toExponential(precision - 1).split("e");
    const [exponent, kept, sign] = [Number(power), short.replace(".", "").replace(/0+$/, "") || "0", value < 0 ? "-" : ""];
    if (exponent < -4 || exponent >= precision) {
      const mantissa = kept.length > 1 ? `${kept[0]}.${kept.slice(1)}` : kept;
      return `${sign}${mantissa}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
    }
    if (exponent < 0) return `${sign}0.${"0".repeat(-exponent - 1)}${kept}`;
    const whole = kept.padEnd(exponent + 1, "0");
    return sign + (whole.length > exponent + 1 ? `${whole.slice(0, exponent + 1)}.${whole.slice(exponent + 1)}` : whole);
  }
  const withCommas = (digits) => digits.replace(/\B(?=(\d{3})+$)/g, ",");

  function roundDigits(value) {
    const digits = toGeneral(value, 3);
    if (!digits.includes("e")) return digits;
    const whole = withCommas(toFixed(value, 0));
    return Math.abs(value) >= 1 && whole.length < 8 ? whole : digits;
  }
  function count(value, unit) {
    const [size, prefix] = PREFIXES.find(([size]) => Math.abs(value) >= size * 0.9995) || [1, ""];
    return prefix ? `${roundDigits(value / size)} ${prefix}${unit}` : `${roundDigits(value)} ${unit}`.trimEnd();
  }
  // The value of a score or cost; its record has isShare, isCounted and unit.
  function formatValue(value, record) {
    if (!Number.isFinite(value)) return DASH;
    if (record.isShare) return `${toFixed(value * 100, 1)}%`;
    return record.isCounted ? count(value, record.unit) : `${roundDigits(value)} ${record.unit}`.trimEnd();
  }
  function formatDifference(change, record) {
    if (!record.isShare) return formatValue(Math.abs(change), record);
    const points = toFixed(Math.abs(change) * 100, 1);
    return points === "1.0" ? `${points} point` : `${points} points`;
  }
  const isMeasurable = (change, value, record) => Math.abs(change) >= (record.isShare ? 0.0005 : 0.001 * Math.abs(value)) && change !== 0;
  function compareCosts(ours, theirs, record) {
    if (!(Number.isFinite(ours) && Number.isFinite(theirs)) || Math.min(ours, theirs) < 0) return `${record.label} that cannot be compared`;
    const [large, small] = [Math.max(ours, theirs), Math.min(ours, theirs)];
    const ratio = small === 0 ? (large ? Infinity : 1) : large / small;
    if (Number.isFinite(ratio) && roundDigits(ratio) === "1") return `as ${record.isCounted ? "many" : "much"} ${record.label}`;
    const factor = Number.isFinite(ratio) ? `${roundDigits(ratio)}x` : "infinitely";
    return `${factor} ${ours < theirs ? (record.isCounted ? "fewer" : "less") : "more"} ${record.label}`;
  }
  // A bound of a limit in a message.
  const formatNumber = (value) =>
    Number.isInteger(value) && Math.abs(value) < 1e9 ? toFixed(value, 0) : toGeneral(value, 6);
  const formatPlural = (number, noun) => `${withCommas(String(number))} ${noun}${number === 1 ? "" : "s"}`;

  return { DASH, toGeneral, formatValue, formatDifference, isMeasurable, compareCosts, formatNumber, formatPlural, withCommas };
})();
