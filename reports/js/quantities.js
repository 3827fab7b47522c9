// How the page writes quantities; reports/quantities.py says the same for the tables.

const MIB = 2 ** 20;
const GIB = 2 ** 30;

// Bytes often lie halfway between two figures; Python rounds those to the even one.
export const grouped = (number, decimals) =>
  number.toLocaleString("en-US", {
    minimumFractionDigits: decimals,
    maximumFractionDigits: decimals,
    roundingMode: "halfEven",
  });

export function formatBytes(count) {
  if (count >= GIB) return `${grouped(count / GIB, 2)} GiB`;
  const mib = count / MIB;
  return count ? `${grouped(mib, mib >= 1 ? 2 : 3)} MiB` : "0 MiB";
}

export function formatShare(share) {
  const percent = Math.abs(100 * share);
  return `${share < 0 ? "−" : "+"}${grouped(percent, percent < 10 ? 2 : 0)}%`;
}

export function formatNumber(number) {
  return grouped(number, number >= 100 ? 0 : number >= 10 ? 1 : 2);
}

// The unit that a scale up to `longest` bytes is written in.
export function byteScale(longest) {
  return longest >= GIB ? { unit: "GiB", bytes: GIB } : { unit: "MiB", bytes: MIB };
}
