/* In main(): the tests of a table, one after the other. */
#ifndef PAML_RUN_TESTS_H
#define PAML_RUN_TESTS_H

#include <stdio.h>

struct test {
    const char *name;
    void (*run)(void);
};

#define TEST(name) {#name, name}

/* `before` each of them, NULL: nothing. A test that fails ends the program. */
static inline int
run_tests(const struct test *tests, size_t count, void (*before)(void))
{
    for (size_t i = 0; i < count; i++) {
        printf("%s\n", tests[i].name);
        fflush(stdout);
        if (before != NULL) {
            before();
        }
        tests[i].run();
    }
    printf("%zu passed, 0 failed\n", count);
    return 0;
}

#endif
