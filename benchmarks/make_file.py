"""Write a simulated file in the form of ATLAS' 2020 four-lepton release. Runs among the peers: ROOT is one.

uproot writes no ``std::vector`` branches, so ROOT does. What decides the time to read is imitated: 46 of the
release's branches, ZLIB level 1, baskets of 32 kB whose entry counts differ from branch to branch, and values
with as many distinct bits as the real ones (lep_pt, eta, phi and E shrink to 60 %, scale factors to 30–60 %).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ROOT

#: Events after which every branch ends its basket, as ROOT's clusters do.
CLUSTER = 100_000

WRITER = r"""
#pragma cling optimize(2)
#include <TFile.h>
#include <TRandom3.h>
#include <TTree.h>
#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <string>
#include <vector>

namespace benchmark {

// Branches by name. A map's values stay where they are, so the tree may keep their addresses.
template <class T>
struct Branches {
  std::map<std::string, T> values;
  Branches(TTree &tree, const std::vector<std::string> &names) {
    for (const auto &name : names) tree.Branch(name.c_str(), &values[name], 32000, 0);
  }
  T &operator[](const std::string &name) { return values.at(name); }
  void clear() { for (auto &item : values) item.second.clear(); }
};

void write(const char *path, long events, unsigned seed, long cluster) {
  TFile file(path, "RECREATE", "", 101);  // ZLIB, level 1
  TTree tree("mini", "mini");
  tree.SetAutoFlush(0);  // or ROOT grows the baskets of a file of this size to megabytes
  TRandom3 random(seed);

  Branches<int> i(tree, {"runNumber", "eventNumber", "channelNumber"});
  Branches<float> f(tree, {"mcWeight", "scaleFactor_PILEUP", "scaleFactor_ELE", "scaleFactor_MUON",
                           "scaleFactor_PHOTON", "scaleFactor_TAU", "scaleFactor_BTAG",
                           "scaleFactor_LepTRIGGER", "scaleFactor_PhotonTRIGGER", "met_et", "met_phi",
                           "met_et_syst", "XSection", "SumWeights"});
  Branches<bool> b(tree, {"trigE", "trigM", "trigP"});
  Branches<unsigned> n(tree, {"lep_n", "jet_n"});
  Branches<std::vector<float>> lep(tree, {"lep_pt", "lep_eta", "lep_phi", "lep_E", "lep_z0", "lep_ptcone30",
                                          "lep_etcone20", "lep_trackd0pvunbiased", "lep_tracksigd0pvunbiased",
                                          "lep_pt_syst"});
  Branches<std::vector<int>> charge(tree, {"lep_charge"});
  Branches<std::vector<unsigned>> type(tree, {"lep_type"});
  Branches<std::vector<bool>> lep_flag(tree, {"lep_truthMatched", "lep_trigMatched", "lep_isTightID"});
  Branches<std::vector<float>> jet(tree, {"jet_pt", "jet_eta", "jet_phi", "jet_E", "jet_jvt", "jet_MV2c10",
                                          "jet_pt_syst"});
  Branches<std::vector<int>> jet_flavour(tree, {"jet_trueflav"});
  Branches<std::vector<bool>> jet_flag(tree, {"jet_truthMatched"});

  // Few distinct values, as a reweighting by the mean number of interactions has.
  std::array<float, 32> pileup;
  for (auto &value : pileup) value = random.Gaus(1, 0.37);
  // An efficiency ratio that falls into the bins of a calibration map.
  auto factor = [&](double width, int bins) { return 1 + width * std::round(random.Gaus(0, bins)) / bins; };

  i["runNumber"] = 284500;
  i["channelNumber"] = 345060;
  f["XSection"] = 0.0060239;
  f["SumWeights"] = 27881776;
  for (const char *name : {"scaleFactor_PHOTON", "scaleFactor_TAU", "scaleFactor_PhotonTRIGGER"}) f[name] = 1;
  b["trigP"] = false;

  for (long event = 0; event < events; ++event) {
    i["eventNumber"] = event;
    f["mcWeight"] = random.Uniform() < 0.003 ? -28.4857 : 28.4857;

    // 4e, 4mu, 2e2mu. One event in twenty holds a lepton that spoils flavour or charge.
    std::array<unsigned, 4> types;
    std::array<int, 4> charges;
    const auto channel = random.Integer(4);
    for (int k = 0; k < 4; ++k) {
      types[k] = channel == 0 ? 11 : channel == 1 ? 13 : k < 2 ? 11 : 13;
      charges[k] = k % 2 ? 1 : -1;
    }
    for (int k = 3; k > 0; --k) {
      const auto other = random.Integer(k + 1);
      std::swap(types[k], types[other]);
      std::swap(charges[k], charges[other]);
    }
    const double spoilt = random.Uniform();
    if (spoilt < 0.03) charges[0] = -charges[0];
    else if (spoilt < 0.05) types[3] = 24 - types[3];
    const auto electrons = std::count(types.begin(), types.end(), 11u);

    f["scaleFactor_PILEUP"] = pileup[random.Integer(pileup.size())];
    f["scaleFactor_ELE"] = 1;
    f["scaleFactor_MUON"] = 1;
    for (int k = 0; k < electrons; ++k) f["scaleFactor_ELE"] *= factor(0.03, 8) * 0.98;
    for (int k = 0; k < 4 - electrons; ++k) f["scaleFactor_MUON"] *= factor(0.007, 8);
    f["scaleFactor_LepTRIGGER"] = random.Uniform() < 0.02 ? 0 : factor(0.05, 200);
    f["scaleFactor_BTAG"] = random.Uniform() < 0.6 ? 1 : factor(0.02, 50);
    b["trigE"] = electrons > 0 && random.Uniform() < 0.9;
    b["trigM"] = !b["trigE"] || (electrons < 4 && random.Uniform() < 0.8);

    lep.clear(); charge.clear(); type.clear(); lep_flag.clear();
    const unsigned leptons = random.Uniform() < 0.03 ? 5 : 4;
    n["lep_n"] = leptons;
    auto &pt = lep["lep_pt"];
    for (unsigned k = 0; k < leptons; ++k) pt.push_back(7000 + random.Exp(24000));
    std::sort(pt.rbegin(), pt.rend());
    for (unsigned k = 0; k < leptons; ++k) {
      const float eta = std::clamp(random.Gaus(0, 1.15), -2.5, 2.5) + random.Uniform(-0.2, 0.2);
      const bool electron = (k < 4 ? types[k] : 11) == 11;
      const double mass = electron ? 0.511 : 105.66;
      lep["lep_eta"].push_back(eta);
      lep["lep_phi"].push_back(random.Uniform(-M_PI, M_PI));
      lep["lep_E"].push_back(std::hypot(pt[k] * std::cosh(eta), mass));
      lep["lep_z0"].push_back(random.Gaus(0, 0.1));
      lep["lep_ptcone30"].push_back(random.Uniform() < 0.8 ? 0 : 1000 + random.Exp(1500));
      lep["lep_etcone20"].push_back(random.Gaus(300, 1200));
      lep["lep_trackd0pvunbiased"].push_back(random.Gaus(0, 0.02));
      lep["lep_tracksigd0pvunbiased"].push_back(std::abs(random.Gaus(0, 1)));
      lep["lep_pt_syst"].push_back(pt[k] * random.Uniform(0.003, 0.02));
      charge["lep_charge"].push_back(k < 4 ? charges[k] : random.Integer(2) ? 1 : -1);
      type["lep_type"].push_back(electron ? 11 : 13);
      lep_flag["lep_truthMatched"].push_back(random.Uniform() < 0.95);
      lep_flag["lep_trigMatched"].push_back(random.Uniform() < 0.5);
      lep_flag["lep_isTightID"].push_back(random.Uniform() < 0.8);
    }

    jet.clear(); jet_flavour.clear(); jet_flag.clear();
    n["jet_n"] = random.Poisson(0.9);
    auto &jet_pt = jet["jet_pt"];
    for (unsigned k = 0; k < n["jet_n"]; ++k) jet_pt.push_back(20000 + random.Exp(30000));
    std::sort(jet_pt.rbegin(), jet_pt.rend());
    for (const float value : jet_pt) {
      const float eta = random.Gaus(0, 1.4);
      jet["jet_eta"].push_back(eta);
      jet["jet_phi"].push_back(random.Uniform(-M_PI, M_PI));
      jet["jet_E"].push_back(value * std::cosh(eta) * 1.01);
      jet["jet_jvt"].push_back(random.Uniform());
      jet["jet_MV2c10"].push_back(random.Uniform(-1, 1));
      jet["jet_pt_syst"].push_back(value * random.Uniform(0.02, 0.2));
      jet_flavour["jet_trueflav"].push_back(random.Uniform() < 0.05 ? 5 : 0);
      jet_flag["jet_truthMatched"].push_back(random.Uniform() < 0.9);
    }
    f["met_et"] = random.Exp(25000);
    f["met_phi"] = random.Uniform(-M_PI, M_PI);
    f["met_et_syst"] = jet_pt.empty() ? 0 : random.Exp(5000);

    tree.Fill();
    if ((event + 1) % cluster == 0) tree.FlushBaskets();
  }
  file.Write();
}

}  // namespace benchmark
"""


def main() -> None:
    """Write one file: same events and seed, same values."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--seed", type=int, default=20201)
    args = parser.parse_args()
    ROOT.gInterpreter.Declare(WRITER)
    part = args.path.with_name(args.path.name + ".part")
    ROOT.benchmark.write(str(part), args.events, args.seed, CLUSTER)
    part.replace(args.path)


if __name__ == "__main__":
    main()
