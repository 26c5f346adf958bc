/** An error whose message is for the person in front of the page: what was given, what is expected, what to do. */
export class Refusal extends Error {}
