// A calibration run: named layers, each observed for a number of batches, then searched and
// recorded.
#pragma once

#include "amct/config/calibration_config.h"
#include "amct/config/operator_params.h"
#include "amct/core/granularity.h"
#include "amct/core/non_finite_policy.h"
#include "amct/core/tensor_view.h"
#include "amct/observe/counted_batches.h"
#include "amct/session/solve.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#pragma GCC visibility push(default)
namespace amct {

/// A layer that has not seen all its batches.
struct UnfinishedLayer {
  std::string name;
  std::int64_t batches = 0;    ///< batches seen; 0: never reached
  std::int64_t batch_num = 0;  ///< batches needed
};

/// How a layer is observed: what whoever counts its batches elsewhere has to know.
struct LayerPlan {
  Granularity granularity = Granularity::kPerTensor;
  /// Whether Session::add_channel_weights() is to be called for each batch, before it is observed.
  bool weighs_channels = false;
  bool channel_factors = false;  ///< whether each channel gets factors of its own
  bool range_only = false;       ///< ranges are enough, see Observer
  NonFinitePolicy nonfinite = NonFinitePolicy::kRaise;
  std::int64_t batch_num = 1;  ///< batches needed
};

/// What became of one batch.
struct Observation {
  enum class Kind : std::uint8_t {
    kAdded,     ///< counted; the layer needs more
    kFinished,  ///< it was the last one: the layer has its factors, or is being searched
    kIgnored,   ///< the layer was finished before
  };
  Kind kind = Kind::kIgnored;
  /// Layers that the record already held and whose factors were replaced.
  std::vector<std::string> overwritten;
};

struct SessionOptions {
  /// Bytes that float32 values may take over all layers before layers are sketched. A layer's share
  /// does not depend on the others' progress, so that results do not either: all of it where a
  /// layer is done after one batch (half of it with search_in_background: the other half may wait),
  /// else an equal part for each layer of the configuration, or the 64th part for each layer of an
  /// operator, which does not know how many will come.
  std::size_t memory_budget = std::size_t{1} << 30;
  /// Most of the time since the first layer finished that writing the record may take, 0 to 1. A
  /// layer that finishes too early for that waits: for the next layer that does not, for the last
  /// layer of the configuration, or for write_record(). 1: each layer goes into the record at once,
  /// as those of an operator always do, since nobody knows which is its last.
  double writing_share = 1;
  /// Whether other threads search layers that have seen all their batches, so that observe() takes
  /// as long as counting does. The call for the last layer of the configuration waits for them all,
  /// and so do write_record() and results(); the first two throw what a search threw. Not more than
  /// four layers wait at a time, nor more float32 values than half of memory_budget holds.
  /// Operators search where they observe, and so does a session whose writing_share is 1.
  bool search_in_background = false;
  /// Where to save what the layers were seen to hold (a counts file); empty: nowhere. It is there
  /// once all layers are finished, or with finish(). Layers then keep values also where their
  /// search needs the range alone. Not for operators, of which nobody knows the last layer.
  // The initializer, which GCC 12 warns without where others are given by name.
  std::string counts_file = {};  // NOLINT(readability-redundant-member-init)
};

/// Calibrates layers and merges them into the record file as they finish. Thread-safe: layers are
/// observed independently, calls for one layer wait for each other. The record holds the same bits
/// whatever the number of threads and the order of the batches.
class Session {
 public:
  /// Calibrates the layers of `config`, whose order is the record's. Throws ValueError for a
  /// batch_num below 1, an unknown algorithm, a layer configured twice, or a record_file that
  /// cannot name a file; StateError where a session of another process writes that record.
  Session(CalibrationConfig config, std::string record_file, const SessionOptions& options = {});
  /// Calibrates whatever layer comes, all in one way; the record has them in the order they finish.
  /// Throws ValueError for a record_file that cannot name a file, or that is there and is not a
  /// record, and IoError where it cannot be read.
  Session(OperatorParams params, std::string record_file, const SessionOptions& options = {});
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;
  ~Session();

  /// Adds one batch to layer `name`, or does nothing where the layer is finished. Either all of the
  /// batch is added or, when an error of it is thrown, nothing. Throws, with layer and batch named:
  /// ValueError for a layer the configuration does not name; NonFiniteError, StateError and
  /// ValueError as Observer::observe; IoError or ValueError where the record cannot be written: the
  /// factors are then kept, and go into the record with a later layer or with write_record().
  /// std::bad_alloc where memory runs out: the layer then takes no more (StateError).
  Observation observe(const std::string& name, const TensorView& batch);

  /// Adds batches that were counted elsewhere, in the same way. Throws as observe() does, with the
  /// last of the batches named, and as Observer::add_counts and Observer::add_ranges.
  Observation observe_counts(const std::string& name, const CountedBatches& batches);
  Observation observe_ranges(const std::string& name, const RangedBatches& batches);

  /// Adds to how much each channel of layer `name` counts (see Observer::add_channel_weights): for
  /// a batch that is observed next. Does nothing where the layer is finished. Throws ValueError for
  /// a layer the configuration does not name, and StateError as the observer does.
  void add_channel_weights(const std::string& name, std::span<const std::uint64_t> weights);

  /// How layer `name` is observed. Throws ValueError for a layer the configuration does not name.
  LayerPlan plan(const std::string& name) const;
  /// Throws what observe() would throw for a batch that is elsewhere, where `batches_before` others
  /// are that came before it. Returns the number of batches the layer has seen here, or nothing
  /// where it is finished, so that the batch is not needed.
  std::optional<std::int64_t> check(const std::string& name, const RemoteBatch& batch,
                                    std::int64_t batches_before) const;

  /// Whether layer `name` has seen all its batches, and needs no more.
  bool finished(const std::string& name) const;

  /// Writes factors that are not in the record yet: they wait for their turn, or an error kept
  /// them. Returns the layers whose factors it replaced. Does nothing where there are none. Throws
  /// what a search in the background threw, once: its layer is unfinished then.
  std::vector<std::string> write_record();

  /// Finishes layers that have seen some of their batches, with what they saw, and writes the
  /// record as write_record() does. Layers that have seen none stay unfinished: nothing is known of
  /// them. Where a layer cannot be finished (StateError: no finite value), the others are all the
  /// same, and the first error is thrown. Throws StateError where the counts file was lost.
  std::vector<std::string> finish();

  /// Saves all that this session knows, so that another one goes on from here with restore(), to
  /// the same bits. `batches_done` is the caller's count of what need not be shown again, `data`
  /// names what is shown: a digest of it, or nothing. To be called between two batches: of one that
  /// some layers have seen, those would see it twice. Waits for searches. Throws IoError, and then
  /// a snapshot that was there is as it was; StateError where nothing is left to be seen, where the
  /// counts file could not be written, of a layer of more than 2 GiB, and for an operator's
  /// session; ValueError where `snapshot` is the record or the counts file; and as write_record()
  /// does.
  void save(const std::string& snapshot, std::int64_t batches_done, const std::string& data = {});
  /// Takes over what save() saved of a session with the same configuration, memory_budget, and
  /// counts_file or none, that was shown the same `data`. Returns batches_done. Throws IoError;
  /// ValueError where the file is no snapshot, was damaged, or is of another calibration;
  /// StateError where this session has seen batches, and for an operator's one. Nothing is taken
  /// over then.
  std::int64_t restore(const std::string& snapshot, const std::string& data = {});

  /// Saves what unfinished layers were seen to hold so far as a counts file, without searching: to
  /// be merged with what other processes have seen of them. Layers that have seen nothing are left
  /// out; batch_num is the most that one has seen. Throws IoError, and StateError as CountsWriter
  /// does and for an operator's session.
  void save_counts(const std::string& counts) const;

  /// The finished layers, in configuration order (else in the order they finished).
  std::vector<LayerResult> results() const;

  /// The layers that have not seen all their batches, in configuration order.
  std::vector<UnfinishedLayer> unfinished() const;

  /// Whether all layers are finished, and record and counts file, where one is asked for, have them
  /// all. Never of an operator's session.
  bool is_complete() const;

  const std::string& record_file() const;
  /// Empty where none is written.
  const std::string& counts_file() const;

 private:
  struct [[gnu::visibility("hidden")]] Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace amct
#pragma GCC visibility pop
