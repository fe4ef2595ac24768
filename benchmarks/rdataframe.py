"""ROOT's way: RDataFrame with compiled functions and typed columns, one thread."""

from __future__ import annotations

from pathlib import Path

import ROOT
from task import BINS, FACTORS, GEV, START, STOP, TREE, Outcome

#: Nothing is left to RDataFrame's own just-in-time compiler: that would cost it a second for each pass.
ANALYSIS = r"""
#pragma cling optimize(3)
#include <Math/Vector4D.h>
#include <ROOT/RDataFrame.hxx>
#include <ROOT/RVec.hxx>
#include <string>
#include <vector>

namespace benchmark {

using ROOT::RVecF;
using ROOT::RVecI;
using ROOT::RVecU;

struct Result {
  unsigned long long events, selected;
  double total;
  TH1D histogram;
};

Result run(const std::string &path, const std::string &tree, const std::vector<std::string> &factors,
           double gev, int bins, double start, double stop) {
  ROOT::RDataFrame frame(tree, path);
  auto events = frame.Count();
  auto selected =
      frame.Filter([](const RVecI &q) { return q[0] + q[1] + q[2] + q[3] == 0; }, {"lep_charge"})
          .Filter(
              [](const RVecU &t) {
                const auto sum = t[0] + t[1] + t[2] + t[3];
                return sum == 44 || sum == 48 || sum == 52;
              },
              {"lep_type"})
          .Define("weight",
                  [](float a, float b, float c, float d, float e) { return double(a) * b * c * d * e; },
                  factors)
          .Define("m4l",
                  [gev](const RVecF &pt, const RVecF &eta, const RVecF &phi, const RVecF &energy) {
                    // Cartesian: adding in polar coordinates would convert at every step.
                    ROOT::Math::PxPyPzEVector total;
                    for (int k = 0; k < 4; ++k)
                      total += ROOT::Math::PtEtaPhiEVector(pt[k], eta[k], phi[k], energy[k]);
                    return total.M() * gev;
                  },
                  {"lep_pt", "lep_eta", "lep_phi", "lep_E"});
  auto count = selected.Count();
  auto total = selected.Sum<double>("weight");
  auto histogram = selected.Histo1D<double, double>({"m4l", "", bins, start, stop}, "m4l", "weight");
  return {*events, *count, *total, *histogram};
}

}  // namespace benchmark
"""

ROOT.TH1.AddDirectory(False)  # noqa: FBT003 (ROOT takes no keyword)
ROOT.gInterpreter.Declare(ANALYSIS)


def compiled(path: Path) -> Outcome:
    """Filter, define, count, sum and fill in one pass."""
    result = ROOT.benchmark.run(str(path), TREE, list(FACTORS), GEV, BINS, START, STOP)
    bins = [result.histogram.GetBinContent(index) for index in range(1, BINS + 1)]
    return Outcome(int(result.events), int(result.selected), result.total, bins)
