// Runs the arithmetic that reports/expressions.py recorded. Numbers up to 2 ** 53 are exact.

const OPERATIONS = {
  add: (a, b) => a + b,
  sub: (a, b) => a - b,
  mul: (a, b) => a * b,
  truediv: (a, b) => a / b,
  floordiv: (a, b) => Math.floor(a / b),
  neg: (a) => -a,
  abs: Math.abs,
  gt: (a, b) => Number(a > b),
  ge: (a, b) => Number(a >= b),
  le: (a, b) => Number(a <= b),
  maximum: Math.max,
  minimum: Math.min,
  ceil: Math.ceil,
  floor: Math.floor,
};

// The value of each step; undefined for steps that no result needs.
export function runSteps(steps, variables) {
  const values = [];
  for (const step of steps) {
    if (!step) values.push(undefined);
    else if (step[0] === "variable") values.push(variables[step[1]]);
    else if (step[0] === "constant") values.push(step[1]);
    else values.push(OPERATIONS[step[0]](...step.slice(1).map((place) => values[place])));
  }
  return values;
}

// The answer at the end of a decision tree.
export function decided(tree, values) {
  while (tree?.if !== undefined) tree = values[tree.if] ? tree.then : tree.else;
  return tree;
}
