/* How many of the process's workers are awake or spin, against the processors that it
 * may use.
 *
 * Owner: the process. Thread: any. Locks: none. The counts are relaxed: they are
 * advice, and nothing is ordered by them.
 */
#ifndef PAML_CROWD_H
#define PAML_CROWD_H

#include <stdbool.h>

/* Workers come (1) and go (-1): awake is who isn't asleep until there is work. */
void paml_crowd_attend(int workers);

/* Whether every processor has a worker that is awake: whoever else spins, or wakes a
   thread, takes one from its run. */
bool paml_crowded(void);

/* True: the caller may spin, as a processor stays free. Ends with paml_crowd_spun(),
   whatever the answer was. */
bool paml_crowd_spin(void);
void paml_crowd_spun(void);

#endif
