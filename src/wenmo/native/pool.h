// Threads that do one piece of work together.
#ifndef WENMO_POOL_H
#define WENMO_POOL_H

#include <stdatomic.h>

typedef struct Pool Pool;
typedef void (*Work)(void *what, int thread);  // thread: 0 … threads − 1

Pool *pool_new(int threads);  // NULL where the system gives none
// Threads that somebody else keeps, libgomp's GOMP_parallel: (function, its argument, threads, flags). Without barriers.
typedef void (*Parallel)(void (*function)(void *), void *argument, unsigned threads, unsigned flags);
Pool *pool_borrowed(int threads, Parallel parallel);
void pool_free(Pool *pool);
int pool_threads(const Pool *pool);
void pool_run(Pool *pool, Work work, void *what);  // by all threads, the caller's among them; returns when all are done
void pool_barrier(Pool *pool);                     // inside a piece of work: nobody goes on before all are here

// Inside a piece of work too: waits until a counter is so high; adds one to it.
void pool_await(Pool *pool, atomic_int *counter, unsigned least);
void pool_advance(Pool *pool, atomic_int *counter);

#endif
