// Writes offset_map.root as ROOT does with kGenerateOffsetMap: C arrays whose baskets have no entry offsets.
// root -l -b -q offset_map.C
// Baskets of the counter and of the arrays hold different entries. Values follow from entry and index alone.
void offset_map() {
  TFile file("offset_map.root", "RECREATE", "", 101);
  TTree tree("mini", "C arrays without entry offsets");
  ROOT::TIOFeatures features;
  features.Set(ROOT::Experimental::EIOFeatures::kGenerateOffsetMap);
  tree.SetIOFeatures(features);
  tree.SetAutoFlush(0);
  UInt_t n;
  Float_t pt[8], eta[8], phi[8], e[8];
  Int_t charge[8];
  UInt_t type[8];
  Bool_t matched[8], trig_e, trig_m;
  Float_t factor[5];
  tree.Branch("lep_n", &n, "lep_n/i", 4000);
  tree.Branch("lep_pt", pt, "lep_pt[lep_n]/F", 1100);
  tree.Branch("lep_eta", eta, "lep_eta[lep_n]/F", 1500);
  tree.Branch("lep_phi", phi, "lep_phi[lep_n]/F", 1500);
  tree.Branch("lep_E", e, "lep_E[lep_n]/F", 1500);
  tree.Branch("lep_charge", charge, "lep_charge[lep_n]/I", 1500);
  tree.Branch("lep_type", type, "lep_type[lep_n]/i", 1500);
  tree.Branch("lep_trigMatched", matched, "lep_trigMatched[lep_n]/O", 700);
  tree.Branch("trigE", &trig_e, "trigE/O", 4000);
  tree.Branch("trigM", &trig_m, "trigM/O", 4000);
  const char *names[] = {"mcWeight", "scaleFactor_PILEUP", "scaleFactor_ELE", "scaleFactor_MUON", "scaleFactor_LepTRIGGER"};
  for (int i = 0; i < 5; ++i) tree.Branch(names[i], &factor[i], TString(names[i]) + "/F", 4000);
  for (int entry = 0; entry < 600; ++entry) {
    n = entry * 7 % 6;
    for (unsigned j = 0; j < n; ++j) {
      pt[j] = 1000 * (entry % 64 + 1) + 8 * j;
      eta[j] = 0.25f * j - 0.5f;
      phi[j] = 0.5f * j - 1;
      e[j] = 2 * pt[j];
      charge[j] = j % 2 ? 1 : -1;
      type[j] = entry % 2 ? 11 : 13;
      matched[j] = j == 0;
    }
    trig_e = entry % 2;
    trig_m = !trig_e;
    for (int i = 0; i < 5; ++i) factor[i] = 1 + 0.125f * i;
    tree.Fill();
  }
  tree.Write();
  file.Close();
}
