/* The other side of all_reduce.py: MPI_Allreduce of floats, microseconds of each call as JSON.
   mpi_all_reduce FLOATS REPEATS */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  const int count = argc > 1 ? atoi(argv[1]) : 2048, repeats = argc > 2 ? atoi(argv[2]) : 1000;
  float* in = calloc((size_t)count, sizeof(float));
  float* out = calloc((size_t)count, sizeof(float));
  if (rank == 0) printf("[");
  for (int i = -repeats / 10; i < repeats; ++i) {
    const double start = MPI_Wtime();
    MPI_Allreduce(in, out, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    if (i >= 0 && rank == 0) printf("%s%.3f", i ? "," : "", (MPI_Wtime() - start) * 1e6);
  }
  if (rank == 0) printf("]\n");
  MPI_Finalize();
  return 0;
}
