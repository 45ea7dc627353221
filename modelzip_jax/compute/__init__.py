"""Computing with packed weights: on the device, layer by layer, and in products that read four bits a weight."""
