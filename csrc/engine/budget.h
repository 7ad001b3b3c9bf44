/* The process's processors, as tokens: whoever computes holds as many as it has
 * threads at work, so that models together don't run more threads than there are
 * processors to run them.
 *
 * Owner: the process; there is one budget. Tokens guard no data, so nothing is ordered
 * by taking them.
 *
 * Uncontended, taking and giving back are one compare-and-swap each. Those that must
 * wait are served first come first served, and while somebody waits nobody overtakes: a
 * request for many tokens is not starved by a stream of small ones. A holder that keeps
 * its tokens from one run to the next asks paml_budget_wanted() in between.
 *
 * Lock: one, inside, guards the list of those that wait. A waiter is a node on its own
 * stack. A forked child must not use the budget: its tokens may be held by threads that
 * it doesn't have.
 */
#ifndef PAML_BUDGET_H
#define PAML_BUDGET_H

#include <stdbool.h>

/* The environment variable that overrides the number of tokens; a positive number. */
#define PAML_BUDGET_VARIABLE "PYASYNCML_CPUS"

/* How many tokens there are: PYASYNCML_CPUS, or the processors that this process may
   use. Read at the first call and kept; make that one before another thread could
   change the environment. */
int paml_budget_total(void);

/* Blocks until `tokens`, 1 or more, are the caller's; more than there are means all. A
   holder that asks for more without giving back what it has may wait for itself. */
void paml_budget_acquire(int tokens);

/* Gives back what one acquire of as many tokens took. */
void paml_budget_release(int tokens);

/* Somebody waits for tokens. */
bool paml_budget_wanted(void);

/* How many are taken. */
int paml_budget_held(void);

#endif
