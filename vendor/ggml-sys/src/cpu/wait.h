// Waiting for a word to change: see wait.c.
#pragma once

#include <stdatomic.h>

// Lowest bit of a word that is waited for: somebody sleeps and has to be woken.
#define SPTS_SLEEPERS 1

// Returns when the word, its lowest bit aside, is no longer `value` (which is even).
void spts_wait_while(atomic_int * word, int value);

// Wakes all who sleep on the word, after a change of it that found SPTS_SLEEPERS set.
void spts_wake(atomic_int * word);
