// Formats quantities for the page's scripts; reports/quantities.py has the same formats for the templates.

const MIB = 2 ** 20;
export const GIB = 2 ** 30;

// Bytes are often halfway between two figures; like Python, round half to even.
const WITH_DECIMALS = [0, 1, 2].map(
  (decimals) =>
    new Intl.NumberFormat("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals, roundingMode: "halfEven" }),
);
const grouped = (number, decimals) => WITH_DECIMALS[decimals].format(number);

// In GiB, or in MiB below one tenth of a GiB.
export function formatBytes(count) {
  return count < GIB / 10 ? `${grouped(count / MIB, 1)} MiB` : `${grouped(count / GIB, 2)} GiB`;
}

export function formatShare(share) {
  const percent = Math.abs(100 * share);
  if (percent < 0.005) return share ? "under 0.01%" : "0%";
  return `${share < 0 ? "−" : "+"}${grouped(percent, percent < 10 ? 2 : 0)}%`;
}

export function formatNumber(number) {
  const size = Math.abs(number);
  return grouped(number, size >= 100 ? 0 : size >= 10 ? 1 : 2);
}

export function formatSeconds(seconds) {
  return seconds >= 1 ? `${formatNumber(seconds)} s` : `${formatNumber(1000 * seconds)} ms`;
}

export const formatLoss = (loss) => loss.toFixed(4);

// The unit of a scale up to `longest` bytes.
export function byteScale(longest) {
  return longest >= GIB / 10 ? { name: "GiB", size: GIB } : { name: "MiB", size: MIB };
}
