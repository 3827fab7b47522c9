// The records, each fact embedded once: a record holds places in the lists of what many records share.

export const STORE = JSON.parse(document.getElementById("store").textContent);

// The whole record of a run, as its file holds it.
export function recordOf(run) {
  const record = structuredClone(STORE.records[run]);
  for (const holder of [record, record.prediction, record.measurement])
    if (holder)
      for (const [field, values] of Object.entries(STORE.shared))
        if (field in holder) holder[field] = values[holder[field]];
  return record;
}

// The breakdowns of a run by answer, undefined for the one that it has not.
export function breakdownsOf(run) {
  const { prediction, measurement } = STORE.records[run];
  return { estimated: prediction?.memory, measured: measurement?.memory };
}

export function lossesOf(run) {
  return STORE.records[run].measurement.losses;
}
