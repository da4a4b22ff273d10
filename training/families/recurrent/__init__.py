"""The recurrent family: RNN, GRU and LSTM, one step after the other."""
