// The smallest function: answers with a greeting.
export const handler = async (event) => ({ message: `Hello, ${event?.name ?? 'world'}!` });
