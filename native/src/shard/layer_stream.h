// Weights of layers that do not stay in memory. A file on the disk has them packed. Threads read
// them ahead of the step, layer by layer, into a few buffers that take turns.
//
// First all layers are written, in any order; from `start` on they are read, in order, again and
// again: after the last layer of a step comes the first of the next.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "formats/matrix.h"
#include "platform/memory.h"
#include "platform/scratch_file.h"

namespace hearth {

class LayerStream {
 public:
  // layers: ascending, of the shard. Throws DeviceError where the folder takes no file.
  LayerStream(std::vector<size_t> layers, const std::string& folder);
  ~LayerStream();
  LayerStream(const LayerStream&) = delete;
  LayerStream& operator=(const LayerStream&) = delete;

  bool has(size_t layer) const;
  // Gives a matrix that has no memory a place in the file, as a part of the layer.
  void place(size_t layer, Matrix& matrix);
  // Packs rows of such a matrix, as Matrix::pack does, to the file. Throws DeviceError.
  size_t pack(size_t layer, Matrix& matrix, size_t first, std::span<const uint8_t> data,
              ThreadPool& pool);
  // All layers are written: reads from now on. Throws DeviceError, std::bad_alloc.
  void start();

  // Waits for the weights of the layer: its matrices have them until the next call. nullopt: only
  // ends the use of the last. Throws DeviceError for a disk that fails, or gives back what was not
  // written, from then on always. Not while a thread uses such weights.
  void next(std::optional<size_t> layer);

  // Of the weights in the file, and of the memory that they take turns in.
  uint64_t file_bytes() const { return end_; }
  size_t memory_bytes() const { return memory_bytes_; }

 private:
  // A run of bytes of a layer that is one in the file and in memory.
  struct Extent {
    uint64_t offset;  // in the file
    size_t at, size;  // in the layer's memory
  };
  struct Part {
    Matrix* matrix;
    size_t at;         // in the layer's memory
    uint64_t offset;   // in the file
    uint64_t sum = 0;  // of what was written: disk_sum.h
  };
  struct Layer {
    size_t number;
    std::vector<Extent> extents;
    std::vector<Part> parts;
    size_t size = 0;   // of its memory
    uint64_t sum = 0;  // of its parts
  };
  // A piece of a layer for one reader, of about kPieceBytes.
  struct Piece {
    uint64_t offset;
    size_t at, size;
  };
  // Memory of one layer at a time.
  struct Seat {
    Buffer memory;
    uint8_t* data = nullptr;
    uint64_t turn = 0;   // whose weights it has, or gets
    size_t next = 0;     // piece to read
    size_t reading = 0;  // pieces that are being read
    size_t left = 0;     // pieces that are not there yet
    uint64_t sum = 0;    // of those that are
  };

  Layer& layer_of(size_t number);
  Seat& seat_of(uint64_t turn) { return seats_[turn % seats_.size()]; }
  const std::vector<Piece>& pieces_of(uint64_t turn) const {
    return pieces_[turn % layers_.size()];
  }
  void give(Seat& seat, uint64_t turn);
  // Gives seats whose turn is over to later ones.
  void recycle();
  // The seat with the next piece to read; nullptr for none now.
  Seat* to_read();
  void read_ahead();

  std::vector<Layer> layers_;
  std::vector<std::vector<Piece>> pieces_;  // of each
  ScratchFile file_;
  uint64_t end_ = 0;        // of what is placed in the file
  size_t last_ = SIZE_MAX;  // the layer of that end
  std::vector<uint8_t> packed_;
  size_t memory_bytes_ = 0;

  std::mutex lock_;
  std::condition_variable changed_;
  std::vector<Seat> seats_;
  // Layers in the order of their use count turns: this is of the one that is in use or comes next.
  uint64_t turn_ = 0;
  bool in_use_ = false;
  bool stop_ = false;
  std::exception_ptr error_;
  std::vector<std::thread> readers_;
};

}  // namespace hearth
