// Binds the batch buffer: its layout, and numpy views of its sections without copies.
#include <pybind11/stl.h>

#include <array>

#include "base/check.h"
#include "bind/quick.h"
#include "bind/sched.h"
#include "sched/scheduler.h"

namespace py = pybind11;

namespace stoker {
namespace {

constexpr std::array<const char*, kNumSections> kSectionNames = {
    "row_seat",  "row_indptr",  "row_kv_len",   "out_token",     "out_seat",
    "out_kind",  "out_target",  "out_position", "token_ids",     "positions",
    "slots",     "work_indptr", "work",         "table_changes", "seat_changes",
    "seat_data", "transfers",   "adapter_ids",  "draft_tokens"};

py::dtype dtype_of(Section section) {
  switch (section) {
    case Section::work:
      return py::dtype::of<AttentionWork>();
    case Section::table_changes:
      return py::dtype::of<TableChange>();
    case Section::seat_changes:
      return py::dtype::of<SeatChange>();
    case Section::transfers:
      return py::dtype::of<Transfer>();
    default:
      return py::dtype::of<int32_t>();
  }
}

Section section_of(std::string_view name) {
  for (size_t i = 0; i < kNumSections; ++i) {
    if (name == kSectionNames[i]) return static_cast<Section>(i);
  }
  throw InvalidArgument("a batch has no section '" + std::string(name) + "'");
}

py::dict sections_of(const BatchLayout& layout) {
  py::dict sections;
  for (size_t i = 0; i < kNumSections; ++i) {
    const auto s = static_cast<Section>(i);
    sections[kSectionNames[i]] =
        py::make_tuple(layout.offset(s), layout.capacity(s), BatchLayout::element_bytes(s));
  }
  return sections;
}

std::vector<ReqPtr> reqs_of(const BatchView& view) {
  std::vector<ReqPtr> reqs;
  if (const auto scheduler = view.scheduler.lock())
    scheduler->reqs_of(view.buffer.header().batch_id, reqs);
  return reqs;
}

py::object num_sampled_rows(const BatchView& b) {
  return py::int_(b.buffer.header().num_sampled_rows);
}

}  // namespace

py::array section_array(const BatchView& view, Section section) {
  const auto& span = view.buffer.header().sections[static_cast<size_t>(section)];
  return py::array(dtype_of(section), {static_cast<py::ssize_t>(span.count)}, {},
                   view.buffer.data() + span.offset, view.owner);
}

void register_sched_batch(py::module_& m) {
  PYBIND11_NUMPY_DTYPE(TableChange, group, seat, index, block);
  PYBIND11_NUMPY_DTYPE(SeatChange, seat, flags, temperature, top_p, min_p, top_k,
                       repetition_penalty, presence_penalty, frequency_penalty, num_logprobs,
                       seed_low, seed_high, min_position, prompt_len, data_begin, num_bias,
                       num_stop, num_context, req, num_prompt_logprobs);
  PYBIND11_NUMPY_DTYPE(AttentionWork, row, q_begin, q_count, kv_begin, kv_end, kv_head, partial,
                       flags);
  PYBIND11_NUMPY_DTYPE(Transfer, ticket, after_step, group, source_tier, source_block,
                       destination_tier, destination_block, reserved);

  py::class_<BatchLimits>(m, "BatchLimits")
      .def_readonly("max_num_seqs", &BatchLimits::max_num_seqs)
      .def_readonly("max_num_batched_tokens", &BatchLimits::max_num_batched_tokens)
      .def_readonly("num_kv_groups", &BatchLimits::num_kv_groups)
      .def_readonly("max_blocks_per_req", &BatchLimits::max_blocks_per_req)
      .def_readonly("min_block_size", &BatchLimits::min_block_size)
      .def_readonly("max_attention_work", &BatchLimits::max_attention_work)
      .def_readonly("num_attention_workers", &BatchLimits::num_attention_workers)
      .def_readonly("num_attention_lists", &BatchLimits::num_attention_lists)
      .def_readonly("max_seat_words", &BatchLimits::max_seat_words);

  py::class_<BatchLayout>(m, "BatchLayout", "Where each section of a batch buffer lies.")
      .def_property_readonly("limits", &BatchLayout::limits)
      .def_property_readonly("nbytes", &BatchLayout::bytes)
      .def_property_readonly("bytes", &BatchLayout::bytes)
      .def(
          "offset",
          [](const BatchLayout& l, std::string_view name) { return l.offset(section_of(name)); },
          py::arg("section"), "In bytes from the buffer's start.")
      .def(
          "capacity",
          [](const BatchLayout& l, std::string_view name) { return l.capacity(section_of(name)); },
          py::arg("section"), "In elements.")
      .def_property_readonly("header_bytes", [](const BatchLayout&) { return kHeaderBytes; })
      .def_property_readonly("sections", &sections_of,
                             "name -> (byte offset, capacity in elements, bytes an element)");

  py::class_<BatchView> batch(
      m, "ScheduleBatch",
      "The work of one step: views of the flat buffer, valid until it is used again.");
  add_quick_property<BatchView, num_sampled_rows>(batch, "num_sampled_rows");
  batch
      .def_property_readonly("batch_id",
                             [](const BatchView& b) { return b.buffer.header().batch_id; })
      .def_property_readonly("flags", [](const BatchView& b) { return b.buffer.header().flags; })
      .def_property_readonly("batch_size",
                             [](const BatchView& b) { return b.buffer.header().num_reqs; })
      .def_property_readonly("num_tokens",
                             [](const BatchView& b) { return b.buffer.header().num_tokens; })
      .def_property_readonly("num_rows",
                             [](const BatchView& b) { return b.buffer.header().num_rows; })
      .def_property_readonly("num_decode_rows",
                             [](const BatchView& b) { return b.buffer.header().num_decode_rows; })
      .def_property_readonly("num_outs",
                             [](const BatchView& b) { return b.buffer.header().num_outs; })
      .def_property_readonly("num_partials",
                             [](const BatchView& b) { return b.buffer.header().num_partials; })
      .def_property_readonly("used_bytes",
                             [](const BatchView& b) { return b.buffer.header().used_bytes; })
      .def_property_readonly("layout", [](const BatchView& b) { return *b.layout; })
      .def_property_readonly("reqs", &reqs_of)
      .def_property_readonly("buffer",
                             [](const BatchView& b) {
                               return py::array(
                                   py::dtype::of<uint8_t>(),
                                   {static_cast<py::ssize_t>(b.buffer.layout().bytes())}, {},
                                   b.buffer.data(), b.owner);
                             })
      .def("__repr__", [](const BatchView& b) {
        const BatchHeader& h = b.buffer.header();
        return "<ScheduleBatch " + std::to_string(h.batch_id) + ": " + std::to_string(h.num_reqs) +
               " reqs, " + std::to_string(h.num_tokens) + " tokens>";
      });
  for (size_t i = 0; i < kNumSections; ++i) {
    const auto s = static_cast<Section>(i);
    batch.def_property_readonly(kSectionNames[i],
                                [s](const BatchView& b) { return section_array(b, s); });
  }
}

}  // namespace stoker
