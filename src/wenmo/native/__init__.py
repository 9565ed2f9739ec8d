"""Native code where a compiler is at hand: whole steps of a model in one call, and what training does between products.

In: a model's matrices and the rows of a step. Out: scores, as the torch path would give but for the last digits. This
room knows tensors and shapes of layers, no models and no requests.

    build.py     finds the compiler; compiles the C files on first use, keeps and loads the library
    packing.py   matrices as the C code reads them
    step.py      a step: its description for the C code, and the call
    encoder.py   the same for an encoder's whole sequences
    training.py  what layers do between their products in training, forward and backward

    vector.h     sixteen numbers at a time, in any processor's way
    pool.c       threads that do one piece of work together
    matrix.c     x W^T + b in each format: rows made ready, and multiplied
    tiles.h      the innermost loops of that, for a few rows and outputs at a time
    lanes.h      their instructions, by processor
    attention.c  attention of rows over keys where they stand
    step.c       the layers, one after the other
    rows.c       what is done to a row between the products
    encoder.c    those of an encoder
    training.c   norms, gates, rotary positions, softmaxes: one pass over memory each, and their gradients

The law of steps: a row of what comes out depends on its own row of what goes in alone, bit by bit. Each sum is taken
in one order, whatever the number of rows and threads; rows are put into blocks but never mixed. So there is nothing to
pad.
"""
